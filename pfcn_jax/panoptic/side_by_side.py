"""Loops whose length follows from a picture's content, when several pictures run side by side (under `vmap`)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Int


@custom_vmap
def longest(steps: Int[Array, ""]) -> Int[Array, ""]:
    """The number of steps of a loop: its own for one picture, the most of all for pictures side by side.

    With a number for each picture, `vmap` would keep both the old and the new state of every step and choose. Steps
    beyond a picture's own number run on unused slots: the caller leaves out what they write.
    """
    return steps


@longest.def_vmap
def _longest_of_all(axis_size: int, in_batched: list[bool], steps: Any) -> tuple[Any, bool]:
    return jnp.max(steps), False
