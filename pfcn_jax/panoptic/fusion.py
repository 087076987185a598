"""Kernel fusion: one kernel per object and per stuff class out of the repeats of several levels (paper section 3.4).

The original walks through a list that shrinks; here the same result in closed form on padded slots.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from pfcn_jax.panoptic.kernels import Threshold, sort_by_score, take
from pfcn_jax.types import Kernels

_SMALLEST_NORM = 1e-8


def similarity(weight: Float[Array, "M E"]) -> Float[Array, "M M"]:
    """Cosine similarity of every pair, with norms of at least 1e-8."""
    weight = weight.astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(weight * weight, axis=-1, keepdims=True))
    unit = weight / jnp.maximum(norm, _SMALLEST_NORM)
    return jnp.matmul(unit, unit.T, precision=lax.Precision.HIGHEST)


def first_claimant(
    kernels: Kernels, alike: Float[Array, "M M"], *, threshold: Threshold, class_aware: bool
) -> Int[Array, " M"]:
    """For every kernel the slot of the first one, itself at the latest, that is similar enough.

    Args:
      kernels: sorted, valid slots first: a kernel is claimed by slots before it only.
      alike: `similarity` of their weights.
    """
    slots = jnp.arange(kernels.score.shape[0])
    claims = (alike >= threshold) & (slots[:, None] < slots[None, :]) & kernels.valid[:, None]
    if class_aware:
        claims &= kernels.class_id[:, None] == kernels.class_id[None, :]
    claims |= slots[:, None] == slots[None, :]
    return jnp.argmax(claims, axis=0)


@struct.dataclass
class Fusion:
    """Kernels before and after fusion; both have valid slots first, best first."""

    picked: Kernels
    similarity: Float[Array, "M M"]  # cosine, of the picked kernels
    owner: Int[Array, " M"]  # slot in `picked` of the first kernel that claims this one; its own slot for a head
    fused: Kernels  # the heads; `head` is their slot in `picked`


def fuse_things(kernels: Kernels, *, threshold: Threshold, class_aware: bool) -> Fusion:
    """Fuses repeats of one object.

    A kernel belongs to the first kernel of a higher score whose cosine similarity is at least `threshold` (and whose
    class is the same, if `class_aware`), else it heads a cluster. The fused kernel is the mean of the cluster; class
    and score are the head's. As in the original, a kernel that is no head still claims others, and what it claimed
    first is dropped: it joins no cluster.

    Args:
      kernels: embedded kernels in any order.
      threshold: a number above 1 only sorts. (As data of a compiled program it finds no pair, with the same result.)
      class_aware: fuse within a class only.
    """
    slots = jnp.arange(kernels.score.shape[0])
    picked = dataclasses.replace(sort_by_score(kernels), head=slots)
    alike = similarity(picked.weight)
    if isinstance(threshold, (int, float)) and threshold > 1.0:
        return Fusion(picked, alike, slots, picked)
    owner = first_claimant(picked, alike, threshold=threshold, class_aware=class_aware)
    is_head = picked.valid & (owner == slots)
    member = (owner[None, :] == slots[:, None]) & picked.valid[None, :]
    fused = dataclasses.replace(
        picked, weight=_mean_of_members(member.astype(jnp.float32), picked.weight), valid=is_head
    )
    return Fusion(picked, alike, owner, take(fused, jnp.argsort(~is_head, stable=True)))


def fuse_stuff(kernels: Kernels, *, channels: int) -> Kernels:
    """The mean kernel and mean score of every region channel over the levels: `channels` slots, slot = channel.

    The members of a fused kernel are the valid slots of its class_id in `kernels`.
    """
    member = (kernels.class_id[None, :] == jnp.arange(channels)[:, None]) & kernels.valid[None, :]
    member_weight = member.astype(jnp.float32)
    return Kernels(
        weight=_mean_of_members(member_weight, kernels.weight),
        class_id=jnp.arange(channels, dtype=jnp.int32),
        score=_mean_of_members(member_weight, kernels.score[:, None])[:, 0],
        valid=jnp.any(member, axis=1),
    )


def _mean_of_members(member: Float[Array, "N M"], values: Float[Array, "M E"]) -> Float[Array, "N E"]:
    total = jnp.matmul(member, values.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return total / jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1.0)
