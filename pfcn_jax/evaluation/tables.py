"""An evaluation as text and as a file."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pfcn_jax.metrics.pq import PQResult


def format_table(result: PQResult, names: Sequence[str] | None = None) -> str:
    """PQ, SQ and RQ of all classes, things and stuff, and of each class that has a segment, as a text table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for column in ("PQ", "SQ", "RQ", "N", "TP", "FP", "FN"):
        table.add_column(column, justify="right")
    for title, group in (("All", result.all), ("Things", result.things), ("Stuff", result.stuff)):
        scores = [f"{value:.2f}" if group.N else "-" for value in (group.PQ, group.SQ, group.RQ)]
        table.add_row(title, *scores, str(group.N))
    table.add_section()
    counts = result.counts
    for c in range(counts.num_classes):
        tp, fp, fn = (int(part[c]) for part in (counts.tp, counts.fp, counts.fn))
        if tp + fp + fn:
            values = (f"{float(part[c]):.2f}" for part in (result.PQ, result.SQ, result.RQ))
            name = escape(names[c]) if names else f"class {c}"  # brackets in a name are no markup
            table.add_row(name, *values, "", str(tp), str(fp), str(fn))
    console = Console(width=100, file=io.StringIO(), force_terminal=False)  # capturing still writes "" to the file
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()
