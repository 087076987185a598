"""Losses, learning rate and PQ of one or more runs as one image, from their `metrics.jsonl`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from pfcn_jax.errors import UserError

LOSSES = ("loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")
SCORES = ("eval/PQ", "eval/PQ_th", "eval/PQ_st")
Series = dict[str, tuple[list[int], list[float]]]


def read_metrics(workdir: pathlib.Path) -> Series:
    """(steps, values) of every scalar that a run wrote; where a resumed run wrote a step again, the later line counts.

    Raises:
      UserError: no metrics.jsonl, or a line that is not a JSON object with a step (it names the line).
    """
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {workdir} is not the working directory of a training run")
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}:{number}: not a line of metrics ({error}); remove the line") from error
        for key, value in values.items():
            if value is not None:
                found.setdefault(key, {})[step] = float(value)
    return {
        key: ([step for step, _ in sorted(at.items())], [y for _, y in sorted(at.items())]) for key, at in found.items()
    }


def draw(runs: Sequence[tuple[str, Series]], output: pathlib.Path) -> None:
    """Three panels: the total loss of every run, the four losses of the first, PQ where it was evaluated."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    total, parts, scores = figure.subplots(1, 3)
    for name, series in runs:
        _line(total, series, "loss", name)
        for key, style in zip(SCORES, ("-", "--", ":")):
            _line(scores, series, key, f"{name} {key.removeprefix('eval/')}", style, marker="o")
    for key in LOSSES:
        _line(parts, runs[0][1], key, key)
    for axes, title in ((total, "loss"), (parts, f"the four losses of {runs[0][0]}"), (scores, "PQ")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    for axes in (total, parts):
        axes.set_yscale("log")
    scores.set_ylim(0, 100)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _line(axes: Any, series: Series, key: str, label: str, style: str = "-", marker: str = "") -> None:
    if key in series:
        axes.plot(*series[key], style, label=label, linewidth=1.2, marker=marker, markersize=4)
