"""Costs of a program as JSON values, as text and as a Markdown table."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from pfcn_jax.studies.compile.chips import ASSUMED_CLOCK, Chip
from pfcn_jax.studies.compile.costs import COLLECTIVES, KINDS, PRODUCTS, Line, Loop
from pfcn_jax.utils.tables import as_text

Row = dict[str, Any]  # JSON values of one compiled program
_DEAREST = 10
_MODULES = 15  # in the text; all of them in the JSON
_CLOCK_NOTE = f"The chip's clock is not published: cycles are scaled by {ASSUMED_CLOCK / 1e9:g} GHz."
_DEPTH = 2  # of a module's path in the table of modules
_COLUMNS: dict[str, Callable[[Row], str]] = {
    "slice": lambda row: row["topology"],
    "program": lambda row: row["program"],
    "canvas": lambda row: row["canvas"],
    "images a chip": lambda row: str(row["images_per_chip"]),
    "compile, s": lambda row: f"{row['lower_s'] + row['compile_s']:.0f}",
    "CPU s": lambda row: f"{row['cpu_s']:.0f}",
    "HBM a chip, GB": lambda row: _number(row, "hbm_gb"),
    "fits": lambda row: "yes" if row["fits"] else "no",
    "GFLOP an image": lambda row: _number(row, "gflop_per_image"),
    "Mcycles": lambda row: _number(row, "mcycles"),
    "in products": lambda row: _percent(row["kinds"][PRODUCTS]["share"]) if row.get("kinds") else "",
    "HBM traffic, GB": lambda row: _number(row, "hbm_traffic_gb"),
    "ms by cycles": lambda row: _number(row, "ms_by_cycles") + ("" if row.get("clock_known", True) else "*"),
    "ms by HBM": lambda row: _number(row, "ms_by_hbm"),
    "bound": lambda row: row.get("bound", ""),
    "images/s": lambda row: _number(row, "images_per_s"),
    "of peak": lambda row: _percent(row["of_peak"]) if "of_peak" in row else "",
}


def summarize(lines: Sequence[Line], loops: Sequence[Loop]) -> Row:
    """Cycles by kind, module and source line, the dearest lines, loops, collectives, and lines without an estimate."""
    total = sum(line.cycles for line in lines)
    collectives = _grouped([line for line in lines if line.kind == COLLECTIVES], lambda line: line.opcode)
    missing = _grouped([line for line in lines if not line.estimated], lambda line: line.kind)
    dearest = sorted(lines, key=lambda line: -line.cycles)[:_DEAREST]
    return {
        "mcycles": total / 1e6,
        "mcycles_loops_once": sum(line.cycles // line.times for line in lines if line.times) / 1e6,
        "mcycles_unknown_trips": sum(line.cycles for line in lines if not line.counted) / 1e6,
        "hbm_traffic_gb": sum(line.hbm_bytes for line in lines) / 1e9,
        "kinds": {kind: _share([line for line in lines if line.kind == kind], total) for kind in KINDS},
        "modules": _shares(lines, lambda line: "/".join(line.module.split("/")[:_DEPTH]), total),
        "sources": _shares(lines, lambda line: line.source or "unknown", total),
        "dearest": [dataclasses.asdict(line) | {"share": line.cycles / max(total, 1)} for line in dearest],
        "loops": [dataclasses.asdict(loop) for loop in loops],
        "collectives": {name: _moved(group) for name, group in collectives.items()},
        "without_estimate": {name: _moved(group) for name, group in missing.items()},
    }


def estimate(row: Row, chip: Chip, *, images: int, batch: int) -> Row:
    """The time of a run by the chip's clock and by its memory, whichever is longer. Collectives are not counted.

    Args:
      images: of one chip.
      batch: of all chips.
    """
    clock = chip.clock or ASSUMED_CLOCK
    by_cycles = row["mcycles"] * 1e6 / clock
    by_hbm = row["hbm_traffic_gb"] * 1e9 / chip.hbm_bandwidth
    seconds = max(by_cycles, by_hbm)
    return {
        "clock_ghz": clock / 1e9,
        "clock_known": chip.clock is not None,
        "ms_by_cycles": 1e3 * by_cycles,
        "ms_by_hbm": 1e3 * by_hbm,
        "bound": "cycles" if by_cycles >= by_hbm else "HBM",
        "images_per_s": batch / seconds,
        "of_peak": row["gflop_per_image"] * 1e9 * images / seconds / chip.peak_flops,
    }


def _grouped(lines: Sequence[Line], key: Callable[[Line], str]) -> dict[str, list[Line]]:
    groups: dict[str, list[Line]] = collections.defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return dict(groups)


def _shares(lines: Sequence[Line], key: Callable[[Line], str], total: int) -> dict[str, Row]:
    """The share of each group of lines, the dearest first."""
    shares = {name: _share(group, total) for name, group in _grouped(lines, key).items()}
    return dict(sorted(shares.items(), key=lambda entry: -entry[1]["cycles"]))


def _share(group: Sequence[Line], total: int) -> Row:
    cycles = sum(line.cycles for line in group)
    products = sum(line.cycles for line in group if line.kind == PRODUCTS)
    return {
        "cycles": cycles,
        "share": cycles / max(total, 1),
        "in_products": products / max(cycles, 1),
        "lines": len(group),
        "without_estimate": sum(not line.estimated for line in group),
    }


def _moved(group: Sequence[Line]) -> Row:
    return {
        "lines": len(group),
        "executions": sum(line.times for line in group),
        "mbytes": sum(line.result_bytes for line in group) / 1e6,
    }


# -------------------------------------------------------------------------------------------------------------- text
def terminal(rows: Sequence[Row]) -> str:
    """A table of all programs, and the details of the largest of each that fits."""
    parts = [_table(list(_COLUMNS), [[cell(row) for cell in _COLUMNS.values()] for row in rows])]
    parts += [f"{_title(row)}: {row['error']}" for row in rows if row.get("error")]
    for row in largest_that_fit(rows):
        parts.append(_details(row))
    parts.append(
        "Times are estimates from the compiler's cycles and from the bytes of every line; nothing was run.\n"
        "Collectives and lines without an estimate take no time in them."
    )
    parts += [f"* {_CLOCK_NOTE}"] if _assumes_a_clock(rows) else []
    return "\n\n".join(parts)


def _assumes_a_clock(rows: Sequence[Row]) -> bool:
    return not all(row.get("clock_known", True) for row in rows)


def largest_that_fit(rows: Sequence[Row]) -> list[Row]:
    """For each slice, program and canvas the row with the most images a chip that fits."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["topology"], row["program"], row["canvas"])
        if row["fits"] and row["images_per_chip"] >= found.get(key, row)["images_per_chip"]:
            found[key] = row
    return list(found.values())


def _title(row: Row) -> str:
    return f"{row['program']}, {row['topology']}, {row['images_per_chip']} x {row['canvas']} a chip"


def _details(row: Row) -> str:
    parts = [f"== {_title(row)} (the largest that fits)"]
    kinds = [[name, *_share_cells(part)] for name, part in row["kinds"].items()]
    parts.append(_table(["kind", "cycles", "lines", "without an estimate"], kinds))
    for head, most in (("module", _MODULES), ("source", _DEAREST)):
        shares = list(row[f"{head}s"].items())[:most]
        cells = [[name, *_share_cells(part), _percent(part["in_products"])] for name, part in shares]
        parts.append(_table([head, "cycles", "lines", "without an estimate", "of these in products"], cells))
    dearest = [
        [_percent(line["share"]), str(line["times"]), line["kind"], line["module"], line["source"], line["shape"][:40]]
        for line in row["dearest"]
    ]
    parts.append(_table(["dearest lines", "times", "kind", "module", "source", "result"], dearest))
    moved = [
        [name, str(part["lines"]), str(part["executions"]), f"{part['mbytes']:.3g}"]
        for groups in (row["collectives"], {f"{k}, no estimate": v for k, v in row["without_estimate"].items()})
        for name, part in groups.items()
    ]
    parts.append(_table(["collectives; lines without an estimate", "lines", "executions", "result, MB"], moved))
    parts.append(_loops(row))
    return "\n\n".join(parts)


def _loops(row: Row) -> str:
    unknown = [loop for loop in row["loops"] if loop["trips"] is None]
    known = len(row["loops"]) - len(unknown)
    text = f"Loops: {known} of known length, counted as often as they run."
    if unknown:
        share = row["mcycles_unknown_trips"] / max(row["mcycles"], 1e-9)
        places = ", ".join(dict.fromkeys(loop["source"] or loop["name"] for loop in unknown))
        text += f" {len(unknown)} whose length follows from the data, counted once ({_percent(share)}): {places}."
    return text


def markdown(result: Row) -> str:
    """The table of a result, with the command and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"    {command}" for command in result["commands"]]
    lines += ["", f"{result['date']}; {versions}. Estimates of the compiler; nothing was run.", ""]
    lines += ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cell(row) for cell in _COLUMNS.values()) + " |" for row in result["rows"]]
    lines += ["", f"\\* {_CLOCK_NOTE}"] if _assumes_a_clock(result["rows"]) else []
    return "\n".join(lines)


def _share_cells(part: Row) -> list[str]:
    return [_percent(part["share"]), str(part["lines"]), str(part["without_estimate"])]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(row: Row, key: str) -> str:
    value = row.get(key)
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    return as_text(table, width=200)
