"""A benchmark's rows as a table: for the terminal, and for a document."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pfcn_jax.studies.benchmark.measure import Row
from pfcn_jax.utils.tables import as_text

_HIDDEN = ("fastest_s", "matmul_gflops_before", "matmul_gflops_after", "compiler_gflop", "runs")
_TITLES = {
    "seconds": "s (median)",
    "p95_s": "s (p95)",
    "seconds_per_picture": "s an image",
    "images_per_s": "images/s",
    "images_per_core_s": "images/s a core",
    "decode_images_per_core_s": "bare decode, images/s a core",
    "share_of_decode_rate": "share of it",
    "against_first": "x the first",
    "compile_s": "compile, s",
    "from_cache_s": "from cache, s",
    "parameters_m": "parameters (million)",
    "channels": "channels of res2..res5",
    "gflop": "GFLOP",
    "gflops": "GFLOP/s",
    "efficiency": "share of matmul",
    "matmul_gflops": "matmul GFLOP/s",
    "temporary_mb": "temporary MB",
    "peak_mb": "peak MB",
    "device_peak_mb": "device peak MB",
    "compute_s": "compute, s",
    "all_reduce_s": "all-reduce, s",
    "input_s": "input, s",
    "step_s": "step, s",
    "efficiency_of_chips": "of each chip",
    "chip_hours": "chip hours",
}
_SHARES = ("efficiency", "efficiency_of_chips", "share_of_decode_rate")


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
    return as_text(table, width=200)


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
