"""The page of the parity checks (docs/parity.md): a section for each area.

Areas take minutes to half an hour each, so a run that checks some of them leaves the other sections as they are.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from pfcn_jax.studies.parity.reference import Check

TITLES = {
    "network": "Features of every layer",
    "training": "Targets, guided kernels and losses",
    "gradients": "Gradients and one optimiser step",
    "prediction": "Prediction: picks, kernels, masks, segments",
    "schedule": "Learning rates",
    "backbones": "Features of EfficientNet-Lite, ConvNeXt and Swin",
    "pictures": "Images and labels: resize, flip, pad",
    "trace": "Trainings of the original, step by step",
    "independence": "A photo alone against the photo in a mixed batch on a larger canvas",
}
NOTES = {
    "gradients": [
        "",
        "Gradients jump where a ReLU switches, so a rounding decides single elements. The step is computed with the",
        "parameters as they are and, if an element misses, again with every parameter moved by at most one unit in its",
        "last place (up to 16 times); all gradients must be right in one and the same run. Losses are always compared",
        "with the parameters as they are.",
    ],
}


@dataclasses.dataclass(frozen=True)
class Section:
    """What an area has found."""

    checks: list[Check]
    lines: list[str] | None = None  # Markdown in place of the table of checks
    draw: Callable[[pathlib.Path], None] | None = None  # writes the section's images into a folder


def write_page(path: pathlib.Path, sections: Mapping[str, Section]) -> None:
    """Writes the sections, and their images into the folder `images` beside the page; keeps those of other areas."""
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    path.write_text(page_text(sections, old), encoding="utf-8")
    for section in sections.values():
        if section.draw:
            section.draw(path.parent / "images")


def page_text(sections: Mapping[str, Section], old: str = "") -> str:
    """The page: a table per area, with the largest difference of each tensor over all files and the share of the
    allowed one.

    Args:
      sections: of the areas that were checked.
      old: the page so far; the sections of other areas are taken from it.
    """
    lines = [
        "# Parity with the original implementation",
        "",
        "Made by `python -m pfcn_jax.main parity --reference DIR --markdown docs/parity.md` (float32, CPU); `--areas`",
        "writes single sections.",
        "For each tensor, over all recorded files: the largest difference, what is allowed in that file, and how much",
        "of it is used.",
        "Allowed for features: 3 times the difference between the original's own float32 and float64 runs, or 1e-5 of",
        "the tensor's largest value, whichever is larger.",
        "",
    ]
    kept = {title: body for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", old, re.MULTILINE | re.DOTALL)}
    for name, title in TITLES.items():
        if name in sections:
            lines += [f"## {title}", "", *_body(name, sections[name]), ""]
        elif title in kept:
            lines += [f"## {title}", kept[title].rstrip("\n"), ""]
    return "\n".join(lines)


def _body(name: str, section: Section) -> list[str]:
    ok = sum(check.ok for check in section.checks)
    lines = [f"{ok} of {len(section.checks)} comparisons ok.", *NOTES.get(name, []), ""]
    if section.lines is not None:
        return lines + section.lines
    lines += ["| tensor | files | largest difference | allowed | used |", "|---|---|---|---|---|"]
    return lines + [_row(tensor, group) for tensor, group in _by_tensor(section.checks).items()]


def _by_tensor(checks: Sequence[Check]) -> dict[str, list[Check]]:
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.tensor, []).append(check)
    return groups


def _row(tensor: str, checks: list[Check]) -> str:
    def used(check: Check) -> float:
        return check.max_abs_diff / check.tolerance if check.tolerance else float(check.max_abs_diff > 0)

    worst = max(checks, key=used)
    share = f"{100 * used(worst):.0f} %" if worst.ok else "**not ok**"
    return f"| {tensor} | {len(checks)} | {worst.max_abs_diff:.2g} | {worst.tolerance:.2g} | {share} |"
