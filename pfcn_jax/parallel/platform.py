"""The one place that asks which platform a program runs on.

The rule: `by_platform` chooses while a program is lowered, so that one traced program can be exported for several
platforms. JAX must not differentiate through it, because a switch saves the residuals of every branch: give the
function its own gradient (`jax.custom_vjp` with a `by_platform` in each pass), or ask `platform` while tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import Mesh

Platform = Literal["cpu", "gpu", "tpu"]
_GPUS = ("gpu", "cuda", "rocm")


def platform(mesh: Mesh | None = None) -> Platform:
    """The platform of a mesh's devices, or (None) of the default device."""
    name = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "gpu" if name in _GPUS else "cpu" if name == "cpu" else "tpu"


def launches_dominate(mesh: Mesh | None = None) -> bool:
    """True on a GPU, where a loop over images costs more in launches than in work.

    On a CPU the loop saves cache, on a TPU memory.
    """
    return platform(mesh) == "gpu"


def by_platform(
    *arguments: Any,
    default: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
) -> Any:
    """The result of the form that is written for the platform which the program is lowered for, else of `default`.

    All forms take `arguments` and return arrays of the same shapes and types.
    """
    forms = {} if cpu is None else {"cpu": cpu}
    forms |= {} if gpu is None else {"cuda": gpu, "rocm": gpu}
    return jax.lax.platform_dependent(*arguments, default=default, **forms)
