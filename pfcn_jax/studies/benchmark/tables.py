"""A benchmark's rows as a table: for the terminal, and for a document."""

from __future__ import annotations

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from pfcn_jax.errors import UserError
from pfcn_jax.studies.benchmark.measure import Row

_HIDDEN = ("fastest_s", "matmul_gflops_before", "matmul_gflops_after", "compiler_gflop", "runs")
_TITLES = {
    "seconds": "s (median)",
    "p95_s": "s (p95)",
    "seconds_per_picture": "s a picture",
    "images_per_s": "pictures/s",
    "images_per_core_s": "pictures/s a core",
    "decode_images_per_core_s": "bare decode, pictures/s a core",
    "share_of_decode_rate": "share of it",
    "against_first": "x the first",
    "compile_s": "compile, s",
    "from_cache_s": "from cache, s",
    "gflop": "GFLOP",
    "gflops": "GFLOP/s",
    "efficiency": "share of matmul",
    "matmul_gflops": "matmul GFLOP/s",
    "temporary_mb": "temporary MB",
    "peak_mb": "peak MB",
    "device_peak_mb": "device peak MB",
    "after_heads_s": "after the heads, s",
    "after_heads_share": "share after the heads",
    "original_s": "original, s",
    "times_faster_low": "x faster (least)",
    "times_faster_high": "x faster (most)",
    "short_side": "short side",
    "compute_s": "compute, s",
    "all_reduce_s": "all-reduce, s",
    "input_s": "input, s",
    "step_s": "step, s",
    "efficiency_of_chips": "of each chip",
    "chip_hours": "chip hours",
}
_SHARES = ("efficiency", "efficiency_of_chips", "after_heads_share", "share_of_decode_rate")


def _columns(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in names if name not in _HIDDEN and any(row.get(name) is not None for row in rows)]


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in _SHARES:
        return f"{100 * value:.0f} %"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def terminal(rows: list[Row]) -> str:
    """A text table."""
    table = Table(box=None, pad_edge=False)
    columns = _columns(rows)
    for name in columns:
        table.add_column(_TITLES.get(name, name), justify="right")
    for row in rows:
        table.add_row(*(_text(name, row.get(name)) for name in columns))
    console = Console(width=200, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def markdown(result: dict[str, Any]) -> str:
    """The whole result: the command, where and when it was measured, and the rows."""
    rows = result["rows"]
    lines = [f"    {result['command']}", "", _circumstances(result), ""]
    columns = _columns(rows)
    lines.append("| " + " | ".join(_TITLES.get(name, name) for name in columns) + " |")
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(_text(name, row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _circumstances(result: dict[str, Any]) -> str:
    if result["part"] == "scaling":
        return f"Worked out, not measured; config {result['config_hash']}."
    place = result["environment"]
    load = "/".join(f"{value:.1f}" for value in place["load_average"])
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    return (
        f"{place['date']}, {place['devices']} x {place['device']} ({place['cores']} CPU cores), load average {load} "
        f"at the start; {versions}; weights: {result['weights']}; config {result['config_hash']}."
    )


def write_section(path: pathlib.Path, name: str, text: str, *, kind: str = "benchmark") -> None:
    """Replaces what stands between `<!-- KIND NAME -->` and `<!-- end NAME -->` in a document.

    Raises:
      UserError: the document or one of the two lines is missing.
    """
    begin, end = f"<!-- {kind} {name} -->\n", f"<!-- end {name} -->"
    document = path.read_text() if path.is_file() else ""
    if begin not in document or end not in document.partition(begin)[2]:
        raise UserError(f"{path}: needs the lines '{begin.strip()}' and '{end}', the table goes between them")
    head, _, rest = document.partition(begin)
    tail = rest.partition(end)[2]
    path.write_text(f"{head}{begin}\n{text}\n\n{end}{tail}")
