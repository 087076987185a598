"""A process that replays a recorded training in float64: what differs then is not rounding.

Run by `replay_in_float64` as `python -m pfcn_jax.studies.parity.trace_float64 FILE REFERENCE STEPS OUTPUT`. The package
computes in float32 wherever it matters, by name; in this process that name means float64, and whole numbers keep their
32 bits. So the very code of the training step runs, without its rounding. Nothing else should import this.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _double() -> None:
    """Lets `jnp.float32` mean float64. Must come before the package's modules are imported: they use it in defaults."""
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64
    jnp.dtype = lambda name: np.dtype("float64" if name == "float32" else name)  # type: ignore[assignment]
    for name in ("sum", "prod", "cumsum"):  # under x64 they would widen sums of int32
        setattr(jnp, name, _narrow(getattr(jnp, name)))


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def narrow(values: Any, *args: Any, dtype: Any = None, **keywords: object) -> Any:
        if dtype is None and getattr(values, "dtype", None) == np.int32:
            dtype = jnp.int32
        return function(values, *args, dtype=dtype, **keywords)

    return narrow


def _main(path: str, weights: str, steps: str, output: str) -> None:
    _double()
    from pfcn_jax.studies.parity.network import load_model
    from pfcn_jax.studies.parity.trace import compile_step, read_trace, replay, start_state

    def widen(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == np.float32 else leaf, tree)

    trace = read_trace(pathlib.Path(path))
    trace.batches[:] = widen(trace.batches)
    model, variables = load_model(pathlib.Path(weights), trace.variant)
    state = start_state(widen(variables), model, trace.config)
    ours, _ = replay(trace, compile_step(model, trace.config), state, steps=int(steps), final=False)
    np.savez(output, **vars(ours))


if __name__ == "__main__":
    _main(*sys.argv[1:])
