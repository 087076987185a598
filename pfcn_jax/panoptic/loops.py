"""Trip counts of loops that follow an image's content."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int


@custom_vmap
def trip_count(steps: Int[Array, ""]) -> Int[Array, ""]:
    """Trip count of a loop. Under vmap: the maximum over the batch.

    With one count per image, `vmap` would compute both the old and the new state of every step and select. Steps
    beyond an image's own count visit unused slots: the caller must ignore what they write.
    """
    return steps


@trip_count.def_vmap
def _maximum_over_batch(axis_size: int, in_batched: list[bool], steps: Any) -> tuple[Any, bool]:
    return jnp.max(steps), False
