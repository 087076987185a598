"""The replayed trainings as a section of the page and as one image."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfcn_jax.studies.parity.reference import Check
from pfcn_jax.studies.parity.trace_judge import (
    AGREED,
    FLOOR,
    LIMITS,
    TIMES,
    WINDOW,
    difference,
    missed_steps,
    steps_within,
)
from pfcn_jax.studies.parity.trace_study import EXACT, IN_FLOAT64, MOVED_RUNS, Outcome
from pfcn_jax.studies.parity.trace_variants import VARIANTS

IMAGE = "parity_trace.png"


def trace_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The section's Markdown, without its title."""
    variants = [f"{outcome.trace.name}/{name}" for outcome in outcomes for name in outcome.variants]
    flags = f" --variants {' '.join(variants)}" if variants else ""
    lines = [
        f"Made with `--areas trace --traces {' '.join(outcome.trace.name for outcome in outcomes)}{flags}`.",
        "",
        "The original was trained from the reproducible weights on fixed batches: in float32, in float64, and with",
        "every parameter moved by one unit in its last place before the first step (`ulp`). Our training step,",
        "schedule and optimizer replay each file with the same batches, `targets.padding=canvas`, float32. Differences",
        "are relative, of the losses before the update of each step.",
        "",
        "Checkpoints of ours from before December 2026 learned other centers on p6 and p7: exact strides in",
        "place of the ratio of the sizes, which differ where a side is no multiple of 64 or 128.",
        "",
        "How many steps from the start every loss and the total are within a difference, and the largest difference",
        "of the total over all steps:",
        "",
        f"| file | runs | steps | {' | '.join(f'{limit:.0e}' for limit in LIMITS)} | largest |",
        "|---|---|---|" + "---|" * (len(LIMITS) + 1),
    ]
    for outcome in outcomes:
        lines += _agreement(outcome)
    lines += [
        "",
        f"Judged step by step, up to the last step at which the original's runs agree to {AGREED:.0e}: ours is",
        f"within {TIMES:.0f} times the largest difference between any two of them so far, or {FLOOR:.0e}; beyond,",
        f"the same for means of {WINDOW} steps. The row shows the step that uses most of what it is allowed.",
        "",
        "The gradient jumps where a rectified value is 0. In each step a float32 run rounds a few of some million",
        "values to the other side, and the two to four recorded runs are few examples of that. So steps in which",
        "float32 is not within are judged again, with the same limits: by our replay in float64 against the",
        f"original's; where it has none, by the nearest of {MOVED_RUNS} replays of ours from parameters moved by one",
        "unit in their last place, as the original's were. (`--variants TRACE/float64` replays all steps in float64:",
        f"every loss must then be within {EXACT:.0e} of the original's own float64 run.)",
        "",
        "| file | checked | difference | allowed | used |",
        "|---|---|---|---|---|",
    ]
    lines += [_judged(check) for outcome in outcomes for check in outcome.checks]
    lines += ["", "Not within in float32 alone:", ""]
    for outcome in outcomes:
        steps = ", ".join(str(step) for step in outcome.missed) or "none"
        lines.append(f"- {outcome.trace.name}: {'steps ' if outcome.missed else ''}{steps}{_moved(outcome)}")
    lines += [
        "",
        "Parameters against the original's float32 run, over all that are trained: how far the norm of what each has",
        "moved differs, and the projection of it on a random direction (relative to that norm).",
        "",
        "| file | after step | run | norm: median, largest | projection: median, largest |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        for row in outcome.parameters:
            pairs = [f"{median:.0e}, {largest:.0e}" for median, largest in (row.norm, row.probe)]
            lines.append(f"| {outcome.trace.name} | {row.step} | {row.run} | {pairs[0]} | {pairs[1]} |")
    if any(outcome.predictions for outcome in outcomes):
        lines += _predictions(outcomes)
    for outcome in outcomes:
        if set(outcome.variants) - {IN_FLOAT64}:
            lines += _variants(outcome)
    return [*lines, "", f"![losses of the replayed trainings](images/{IMAGE})"]


def _moved(outcome: Outcome) -> str:
    """How many of the moved runs miss a step, too."""
    if not outcome.moved:
        return ""
    missing = [missed_steps(losses, outcome.trace.losses) for losses in outcome.moved]
    some = sum(map(bool, missing))
    first = ", ".join(str(steps[0]) if steps else "none" for steps in missing)
    return f". Of {len(missing)} moved runs {some} miss a step up to there, too (first: {first})"


def _agreement(outcome: Outcome) -> list[str]:
    trace, ours, runs = outcome.trace, outcome.replay.losses, outcome.trace.losses
    pairs = [("ours, float32", ours, runs["float32"])]
    if "float64" in runs:
        pairs.append(("ours, float64", ours, runs["float64"]))
        if IN_FLOAT64 in outcome.variants:
            pairs.append(("ours in float64, float64", outcome.variants[IN_FLOAT64], runs["float64"]))
    pairs += [(f"{run}, float32", losses, runs["float32"]) for run, losses in runs.items() if run != "float32"]
    rows = []
    for name, one, other in pairs:
        found = difference(one, other)
        counts = " | ".join(str(steps_within(found, limit)) for limit in LIMITS)
        rows.append(f"| {trace.name} | {name} | {len(found)} | {counts} | {found[:, 1].max():.1e} |")
    return rows


def _predictions(outcomes: Sequence[Outcome]) -> list[str]:
    """How far the semantic maps at the end are from the original's."""
    lines = [
        "",
        "Predictions after the last step, each image alone: share of the pixels whose semantic class differs from",
        "the original's float32 run. (Of its panoptic maps the original itself repeats too little to compare.)",
        "",
        "| file | run | images | median | largest |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        for row in outcome.predictions:
            values = f"{len(row.shares)} | {100 * row.median:.1f} % | {100 * row.shares.max():.1f} %"
            lines.append(f"| {outcome.trace.name} | {row.run} | {values} |")
    return lines


def _judged(check: Check) -> str:
    used = check.max_abs_diff / check.tolerance if check.tolerance else float(check.max_abs_diff > 0)
    share = f"{100 * used:.0f} %" if check.ok else "**not ok**"
    file = check.file.removesuffix(".npz")
    return f"| {file} | {check.tensor} | {check.max_abs_diff:.1e} | {check.tolerance:.1e} | {share} |"


def _variants(outcome: Outcome) -> list[str]:
    """How far each variant moves the total loss."""
    ours, runs = outcome.replay.losses, outcome.trace.losses
    others = {f"nothing: the original's {run}": (runs["float32"], runs[run]) for run in runs if run != "float32"}
    others["nothing: ours against the original's float32"] = (runs["float32"], ours)
    others |= {VARIANTS[name]: (ours, losses) for name, losses in outcome.variants.items() if name in VARIANTS}
    lines = [
        "",
        f"With one thing changed, `{outcome.trace.name}` ({len(ours)} steps): relative difference of the total loss",
        "from our replay.",
        "",
        "| changed | step 1 | median | largest | mean, signed | last 10 steps, mean |",
        "|---|---|---|---|---|---|",
    ]
    for name, (base, losses) in others.items():
        change = losses.sum(axis=1) / base[: len(losses)].sum(axis=1) - 1.0
        sizes = np.abs(change)
        values = [f"{value:.1e}" for value in (sizes[0], np.median(sizes), sizes.max())]
        values += [f"{value:+.1e}" for value in (change.mean(), change[-10:].mean())]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return lines


def draw_traces(outcomes: Sequence[Outcome], output: pathlib.Path) -> None:
    """Three panels: losses of the trace with variants, their differences from the original, and the longest trace."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    losses, differences, long = figure.subplots(1, 3)
    longest = max(outcomes, key=lambda outcome: len(outcome.replay.losses))
    chosen = max(outcomes, key=lambda outcome: len(outcome.variants))
    base = chosen.trace.losses["float32"].sum(axis=1)
    for name, total in _totals(chosen).items():
        style = "--" if name.startswith("original") else "-"
        losses.plot(np.arange(1, len(total) + 1), total, style, label=name, linewidth=1.0)
        if name != "original float32":
            change = np.maximum(np.abs(total / base[: len(total)] - 1.0), 1e-9)
            differences.plot(np.arange(1, len(total) + 1), change, style, label=name, linewidth=1.0)
    for name, total in _totals(longest, variants=False).items():
        style = "--" if name.startswith("original") else "-"
        long.plot(np.arange(1, len(total) + 1), total, style, label=name, linewidth=1.0)
    _finish(losses, f"total loss, {chosen.trace.name}")
    _finish(differences, "relative difference from the original's float32 run")
    _finish(long, f"total loss, {longest.trace.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _totals(outcome: Outcome, *, variants: bool = True) -> dict[str, np.ndarray]:
    curves = {f"original {run}": losses.sum(axis=1) for run, losses in outcome.trace.losses.items()}
    curves["ours"] = outcome.replay.losses.sum(axis=1)
    if variants:
        curves |= {f"ours, {name}": losses.sum(axis=1) for name, losses in outcome.variants.items()}
    return curves


def _finish(axes: Any, title: str) -> None:
    axes.set(title=title, xlabel="step")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
