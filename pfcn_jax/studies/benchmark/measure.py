"""Measuring: repeated runs, what a program costs to compile and to keep, and the machine's own speed beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from pfcn_jax.studies.flops import compiled_flops, traced_flops

PyTree = Any
Row = dict[str, Any]  # one measured line: JSON values, the same keys in every row of a part


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of a number of runs."""

    median: float
    p95: float
    fastest: float
    runs: int

    def row(self) -> Row:
        return {"seconds": self.median, "p95_s": self.p95, "fastest_s": self.fastest, "runs": self.runs}


def time_runs(function: Callable[[], PyTree], *, seconds: float, at_least: int = 3, at_most: int = 200) -> Timing:
    """Runs `function` (until its results are there) for about `seconds`, after one run that is not counted."""
    jax.block_until_ready(function())
    spent: list[float] = []
    while len(spent) < at_least or (sum(spent) < seconds and len(spent) < at_most):
        begin = time.perf_counter()
        jax.block_until_ready(function())
        spent.append(time.perf_counter() - begin)
    return Timing(statistics.median(spent), float(np.percentile(spent, 95)), min(spent), len(spent))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program with what it took to get it. Seconds include tracing and lowering; sizes are bytes."""

    run: jax.stages.Compiled
    compile_seconds: float
    cached_seconds: float
    flops: float
    compiler_flops: float | None
    temporary_bytes: int
    peak_bytes: int

    def row(self) -> Row:
        return {
            "compile_s": self.compile_seconds,
            "from_cache_s": self.cached_seconds,
            "gflop": self.flops / 1e9,
            "compiler_gflop": None if self.compiler_flops is None else self.compiler_flops / 1e9,
            "temporary_mb": self.temporary_bytes / 1e6,
            "peak_mb": self.peak_bytes / 1e6,
        }


def compile_program(function: Callable[..., PyTree], *arguments: PyTree, donate: tuple[int, ...] = ()) -> Program:
    """Compiles twice: from nothing, and from a persistent cache that holds just this program."""

    def build() -> tuple[jax.stages.Compiled, Any, float]:
        jax.clear_caches()
        begin = time.perf_counter()
        traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
        compiled = traced.lower().compile()
        return compiled, traced, time.perf_counter() - begin

    with _own_cache():
        _, _, cold = build()
        compiled, traced, cached = build()
    memory: Any = compiled.memory_analysis()
    temporary = int(memory.temp_size_in_bytes)
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        run=compiled,
        compile_seconds=cold,
        cached_seconds=cached,
        flops=traced_flops(traced.jaxpr),
        compiler_flops=compiled_flops(compiled),
        temporary_bytes=temporary,
        peak_bytes=temporary + int(outside),
    )


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """An empty persistent cache that takes everything, and the settings of before afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = [getattr(jax.config, name) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(names, (folder, 0.0, -1)):
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in zip(names, before):
                jax.config.update(name, value)
            compilation_cache.reset_cache()


class Yardstick:
    """The machine's current matmul rate, the yardstick of every measured time."""

    def __init__(self, dtype: str = "float32"):
        self.size = 2048 if jax.default_backend() == "cpu" else 8192
        # Not constant: a GPU draws less power for equal numbers, and is faster than with those of a network.
        self._matrix = jax.random.normal(jax.random.key(0), (self.size, self.size), jnp.dtype(dtype))
        self._product = jax.jit(jnp.matmul).lower(self._matrix, self._matrix).compile()

    def rate(self) -> float:
        """Floating-point operations per second of one product, the median over half a second."""
        timing = time_runs(lambda: self._product(self._matrix, self._matrix), seconds=0.5)
        return 2.0 * self.size**3 / timing.median

    @contextlib.contextmanager
    def around(self, row: Row) -> Iterator[None]:
        """Measures before and after, and adds `matmul_gflops` (both) and their mean to a row."""
        before = self.rate()
        yield
        after = self.rate()
        row["matmul_gflops_before"], row["matmul_gflops_after"] = before / 1e9, after / 1e9
        row["matmul_gflops"] = (before + after) / 2e9


def against_matmul(row: Row) -> Row:
    """The row with its share of the matrix product's rate, where it has operations."""
    if row.get("gflop"):
        row["gflops"] = row["gflop"] / row["seconds"]
        row["efficiency"] = row["gflops"] / row["matmul_gflops"]
    return row


def device_peak_mb() -> float | None:
    """The most memory that the first device has held so far, where it says so."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    peak = statistics_of_device.get("peak_bytes_in_use")
    return None if peak is None else peak / 1e6
