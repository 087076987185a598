"""An ablation table as JSON, as Markdown and as an image: what was published beside what was measured."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pfcn_jax.config.schema import Config, config_hash
from pfcn_jax.studies.ablate.tables import METRICS, Table
from pfcn_jax.studies.sections import write_section
from pfcn_jax.utils.atomic import write_json, write_text

Record = dict[str, Any]
Measured = Mapping[str, Mapping[int, Mapping[str, Any]]]  # row name -> seed -> what was written of the evaluation
_COLORS = {"PQ": "black", "PQ_th": "tab:orange", "PQ_st": "tab:blue"}


def make_record(table: Table, base: Config, measured: Measured, seeds: Sequence[int]) -> Record:
    """Everything about a table as JSON values. Rows and seeds that are not measured yet are left out of the sums."""
    rows = []
    reference = measured.get(table.reference, {})
    for row in table.rows:
        runs = [dict(run) for _, run in sorted(measured.get(row.name, {}).items())]
        # Seed by seed: rows of one seed see the same batches, and start alike where their networks are alike.
        paired = [(run["PQ"], reference[run["seed"]]["PQ"]) for run in runs if run["seed"] in reference]
        rows.append(
            {
                "row": row.name,
                "changes": dict(row.changes),
                "published": row.published._asdict(),
                "runs": runs,
                "summary": {name: summarize([run[name] for run in runs]) for name in METRICS},
                "PQ_difference": summarize([ours - theirs for ours, theirs in paired]),
                "train_seconds": summarize([run["train_seconds"] for run in runs]),
            }
        )
    return {
        "table": table.name,
        "title": table.title,
        "reference": table.reference,
        "config": base.name,
        "config_hash": config_hash(base),
        "steps": base.train.steps,
        "batch_size": base.train.batch_size,
        "seeds": list(seeds),
        "rows": rows,
    }


def summarize(values: Sequence[float | None]) -> dict[str, float] | None:
    """Mean, least and most; None without a value."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "min": min(known), "max": max(known), "runs": len(known)}


def markdown(record: Record) -> str:
    """Two lines a row: the paper's figures, and ours as mean (least-most) over the seeds."""
    lines = [
        f"| {record['title']} | | {' | '.join(METRICS)} | PQ - PQ of {record['reference']} | training |",
        "|" + "---|" * (len(METRICS) + 4),
    ]
    published = {row["row"]: row["published"] for row in record["rows"]}
    for row in record["rows"]:
        paper = [f"{value:.1f}" for value in row["published"].values()]
        difference = row["published"]["PQ"] - published[record["reference"]]["PQ"]
        ours = [spread(row["summary"][name]) for name in METRICS]
        name = f"**{row['row']}**" if row["row"] == record["reference"] else row["row"]
        seconds = row["train_seconds"]
        lines.append(f"| {name} | paper | {' | '.join(paper)} | {difference:+.1f} | |")
        lines.append(
            f"| | here | {' | '.join(ours)} | {spread(row['PQ_difference'], sign='+')} | "
            f"{'' if seconds is None else _duration(seconds['mean'])} |"
        )
    return "\n".join([*lines, "", _caption(record)])


def spread(summary: Mapping[str, float] | None, sign: str = "") -> str:
    """ "52.1 (51.8 to 52.4)", the mean alone of a single run, or a dash."""
    if summary is None:
        return "-"
    mean = f"{summary['mean']:{sign}.1f}"
    if summary["runs"] == 1:
        return mean
    return f"{mean} ({summary['min']:{sign}.1f} to {summary['max']:{sign}.1f})"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36000
        else f"{seconds / 3600:.0f} h"
    )


def _caption(record: Record) -> str:
    runs = [run for row in record["rows"] for run in row["runs"]]
    places = {(run["environment"]["devices"], run["environment"]["device"]) for run in runs}
    dates = sorted({run["environment"]["date"] for run in runs})
    seeds = ", ".join(map(str, record["seeds"]))
    missing = len(record["rows"]) * len(record["seeds"]) - len(runs)
    parts = [
        f"Paper: COCO val, R50 1x. Here: `{record['config']}` ({record['config_hash']}), {record['steps']} steps of "
        f"{record['batch_size']} images, seeds {seeds}: mean (least to most)",
        *([f"{max(run['pictures'] for run in runs)} images scored"] if runs else []),
        *(f"{count} x {device}" for count, device in sorted(places)),
        *([f"{dates[0]} to {dates[-1]}" if dates[0] != dates[-1] else dates[0]] if dates else []),
        *([f"{missing} runs not done yet"] if missing else []),
    ]
    return "; ".join(parts) + "."


def draw(records: Sequence[Record], output: pathlib.Path) -> None:
    """For each table the paper's PQ, PQ_th and PQ_st on the left, ours on the right: means, spreads, single seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = [len(record["rows"]) for record in records]
    figure = Figure(figsize=(10, sum(0.32 * length + 0.85 for length in lengths) + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(records), 2, squeeze=False, height_ratios=[0.32 * length + 0.85 for length in lengths])
    for (paper, ours), record in zip(panels, records):
        names = [row["row"] for row in record["rows"]]
        for axes, title in ((paper, "paper (COCO val)"), (ours, f"here ({record['config']})")):
            axes.set_title(f"{record['table']}: {title}", fontsize="small", loc="left")
            axes.set_yticks(range(len(names)), names, fontsize="small")
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(alpha=0.3)
        for metric, color in _COLORS.items():
            paper.plot(
                [row["published"][metric] for row in record["rows"]],
                range(len(names)),
                "o",
                color=color,
                label=metric,
                markersize=5,
            )
            _draw_ours(ours, record, metric, color)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def _draw_ours(axes: Any, record: Record, metric: str, color: str) -> None:
    shift = 0.18 * (list(_COLORS).index(metric) - 1)  # so that spreads do not lie on each other
    for place, row in enumerate(record["rows"]):
        summary, height = row["summary"][metric], place + shift
        if summary is None:
            continue
        axes.plot([summary["min"], summary["max"]], [height, height], "-", color=color, linewidth=1.2)
        axes.plot([run[metric] for run in row["runs"]], [height] * len(row["runs"]), "|", color=color, markersize=6)
        axes.plot(summary["mean"], height, "o", color=color, markersize=4)


def write_table(directory: pathlib.Path, record: Record) -> None:
    """<table>.json, .md and .png."""
    name = record["table"]
    write_json(directory / f"{name}.json", record)
    write_text(directory / f"{name}.md", markdown(record) + "\n")
    draw([record], directory / f"{name}.png")


def collect(document: pathlib.Path, records: Sequence[Record]) -> list[pathlib.Path]:
    """Writes every table into its section of a document, and one image of all to `images/` beside it.

    Raises:
      UserError: the document has no section `<!-- ablation TABLE -->` ... `<!-- end TABLE -->` for one of them, or none
        named `picture`.
    """
    for record in records:
        write_section(document, record["table"], markdown(record), kind="ablation")
    image = document.parent / "images" / f"{document.stem}.png"
    draw(records, image)
    link = f"![PQ of every row: the paper's and ours](images/{image.name})"
    write_section(document, "picture", link, kind="ablation")
    return [document, image]
