"""From dense outputs to kernels at prediction: pick peaks for things, pool regions for stuff, apply kernels.

Every function is for one image (no batch axis). Kernels are picked with the K channels of the kernel map; the model
embeds them to the E channels of the encoded feature afterwards, because the bias of the embedding does not commute
with pooling.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pfcn_jax.types import STRIDES, Kernels, KernelSource

Threshold = float | np.number | Array  # data of a compiled program, or compiled in
POOL_WINDOWS = (3, 3, 3, 5, 5)  # of the mean that smooths the centers, p3..p7 (not in the paper, but in its code)


def in_use(shape: tuple[int, ...], padded_size: Int[Array, " 2"], stride: int) -> Bool[Array, "hl wl"]:
    """Mask of the positions of a map of `stride`, shape (hl, wl), inside an image of `padded_size` pixels."""
    rows = jnp.arange(shape[0]) * stride < padded_size[0]
    columns = jnp.arange(shape[1]) * stride < padded_size[1]
    return rows[:, None] & columns[None, :]


def _slide(x: Float[Array, "hl wl T"], window: int, combine) -> Float[Array, "hl wl T"]:
    """`combine`s a window x window neighborhood of non-negative scores, zeros outside (sum and maximum separate)."""
    reach = window // 2
    for axis, length in enumerate(x.shape[:2]):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(x, padding)
        x = lax.slice_in_dim(padded, 0, length, axis=axis)
        for offset in range(1, window):
            x = combine(x, lax.slice_in_dim(padded, offset, offset + length, axis=axis))
    return x


def center_scores(
    center_logits: Float[Array, "hl wl T"], padded_size: Int[Array, " 2"], *, stride: int, window: int
) -> Float[Array, "hl wl T"]:
    """Scores of object centers: (p + mean(p)) / 2, zero beyond the image (paper section 3.4).

    The mean is over `window` x `window` positions with zeros outside the image counted, as the original pools.
    """
    used = in_use(center_logits.shape[:2], padded_size, stride)[:, :, None]
    probability = jnp.where(used, jax.nn.sigmoid(center_logits.astype(jnp.float32)), 0.0)
    mean = _slide(probability, window, jnp.add) / (window * window)
    return jnp.where(used, (probability + mean) / 2.0, 0.0)


def keep_peaks(score: Float[Array, "hl wl T"]) -> Float[Array, "hl wl T"]:
    """The score where it is its class's 3x3 maximum, else 0."""
    return jnp.where(score == _slide(score, 3, jnp.maximum), score, 0.0)


def center_peaks(
    center_logits: Float[Array, "hl wl T"], padded_size: Int[Array, " 2"], *, stride: int, window: int
) -> Float[Array, "hl wl T"]:
    """The peaks of `center_scores`."""
    return keep_peaks(center_scores(center_logits, padded_size, stride=stride, window=window))


@struct.dataclass
class Picks:
    """The best peaks of a level, best first; `position` counts the positions of the level row by row."""

    position: Int[Array, " N"]
    class_id: Int[Array, " N"]
    score: Float[Array, " N"]
    valid: Bool[Array, " N"]


def best_peaks(
    peaks: Float[Array, "hl wl T"], padded_size: Int[Array, " 2"], *, stride: int, candidates: int, threshold: Threshold
) -> Picks:
    """min(candidates, positions of the canvas) slots, over all classes.

    An image with fewer positions than `candidates` gets no more than its positions, as the original. Equal scores
    are ordered by row, column, class (the original leaves their order open).
    """
    hl, wl, classes = peaks.shape
    slots = min(candidates, hl * wl)
    # A top-k over the whole level at once never finishes compiling for a GPU (XLA's TopKSplitter, JAX 0.11) if it has a
    # multiple of 1024 scores between 2^20 and 2^21, as 1216 x 1216 with 80 classes. So: of each row, then of those.
    of_row, within = lax.top_k(peaks.reshape(hl, wl * classes), min(slots, wl * classes))
    score, place = lax.top_k(of_row.reshape(-1), slots)
    index = place // of_row.shape[1] * (wl * classes) + within.reshape(-1)[place]
    used = (-(-padded_size[0] // stride)) * (-(-padded_size[1] // stride))
    return Picks(
        position=index // classes,
        class_id=(index % classes).astype(jnp.int32),
        score=score,
        valid=(score > threshold) & (jnp.arange(slots) < used),
    )


def pick_level(
    peaks: Float[Array, "hl wl T"],
    kernel_map: Float[Array, "hl wl K"],
    padded_size: Int[Array, " 2"],
    *,
    level: int,
    candidates: int,
    threshold: Threshold,
) -> Kernels:
    """The kernels at the best peaks of one level (0 = p3), best first (see `best_peaks`)."""
    picks = best_peaks(peaks, padded_size, stride=STRIDES[level], candidates=candidates, threshold=threshold)
    return Kernels(
        weight=kernel_map.reshape(-1, kernel_map.shape[2])[picks.position],
        class_id=picks.class_id,
        score=picks.score,
        valid=picks.valid,
        source=peak_source(picks, level, peaks.shape[1]),
    )


def peak_source(picks: Picks, level: int, columns: int, view: int = 0) -> KernelSource:
    """The source of kernels at peaks of a level with `columns` columns."""
    cell = jnp.stack([picks.position // columns, picks.position % columns], axis=1)
    level_of, view_of = (jnp.full(picks.score.shape, value, jnp.int32) for value in (level, view))
    return KernelSource(level=level_of, cell=cell.astype(jnp.int32), view=view_of)


def pick_things(
    center_logits: tuple[Float[Array, "_hl _wl T"], ...],
    kernel_map: tuple[Float[Array, "_hl _wl K"], ...],
    padded_size: Int[Array, " 2"],
    *,
    candidates: int,
    threshold: Threshold,
) -> Kernels:
    """Kernels of things, not yet embedded, level after level and best first in each (paper section 3.4).

    Args:
      center_logits: object centers of each level.
      kernel_map: kernel map of each level.
      candidates: peaks kept on each level over all classes.
      threshold: only a score above it makes a kernel.
    """
    picked = [
        pick_level(
            center_peaks(logits, padded_size, stride=STRIDES[level], window=POOL_WINDOWS[level]),
            kernels,
            padded_size,
            level=level,
            candidates=candidates,
            threshold=threshold,
        )
        for level, (logits, kernels) in enumerate(zip(center_logits, kernel_map, strict=True))
    ]
    return concatenate(picked)


def pool_level(
    region_logits: Float[Array, "hl wl C"],
    kernel_map: Float[Array, "hl wl K"],
    padded_size: Int[Array, " 2"],
    *,
    level: int,
    threshold: Threshold,
) -> Kernels:
    """One kernel for each region channel that is the best somewhere on the level, in slot = channel.

    Its score is the mean probability over those positions; its weight is the sum of the kernel map over them divided
    by the area of the whole image (not of the region), as training does.
    """
    hl, wl, channels = region_logits.shape
    used = in_use((hl, wl), padded_size, STRIDES[level])
    logits = region_logits.astype(jnp.float32)
    best = jnp.argmax(logits, axis=-1)
    region = ((best[:, :, None] == jnp.arange(channels)[None, None, :]) & used[:, :, None]).astype(jnp.float32)
    count = jnp.sum(region, axis=(0, 1))
    score = jnp.sum(region * jax.nn.sigmoid(logits), axis=(0, 1)) / jnp.maximum(count, 1.0)
    area = jnp.maximum(jnp.sum(used, dtype=jnp.float32), 1.0)
    weight = jnp.einsum(
        "pc,pk->ck",
        region.reshape(hl * wl, channels),
        kernel_map.reshape(hl * wl, -1).astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    return Kernels(
        weight=weight / area,
        class_id=jnp.arange(channels, dtype=jnp.int32),
        score=score,
        valid=(count > 0) & (score > threshold),
        source=KernelSource(
            level=jnp.full(channels, level, jnp.int32),
            cell=jnp.full((channels, 2), -1, jnp.int32),
            view=jnp.zeros(channels, jnp.int32),
        ),
    )


def pool_stuff(
    region_logits: tuple[Float[Array, "_hl _wl C"], ...],
    kernel_map: tuple[Float[Array, "_hl _wl K"], ...],
    padded_size: Int[Array, " 2"],
    *,
    threshold: Threshold,
) -> Kernels:
    """Kernels of stuff, not yet embedded: C slots per level, level after level (paper section 3.2, 3.4).

    Channel 0, "any thing", is pooled like the others: it competes for pixels later and becomes void.
    """
    levels = enumerate(zip(region_logits, kernel_map, strict=True))
    return concatenate(
        [
            pool_level(logits, kernels, padded_size, level=level, threshold=threshold)
            for level, (logits, kernels) in levels
        ]
    )


def concatenate(parts: list[Kernels]) -> Kernels:
    """Slots one after the other."""
    return jax.tree.map(lambda *fields: jnp.concatenate(fields, axis=0), *parts)


def take(kernels: Kernels, index: Int[Array, " N"]) -> Kernels:
    """The slots `index`, in that order."""
    return jax.tree.map(lambda field: field[index], kernels)


def pad_slots(kernels: Kernels, multiple: int) -> Kernels:
    """Appends invalid slots up to a multiple."""
    missing = -kernels.score.shape[0] % multiple
    return jax.tree.map(lambda field: jnp.pad(field, [(0, missing)] + [(0, 0)] * (field.ndim - 1)), kernels)


def sort_by_score(kernels: Kernels) -> Kernels:
    """Valid slots first, best first; equal scores keep their order (the original's sort leaves it open)."""
    return take(kernels, jnp.argsort(jnp.where(kernels.valid, -kernels.score, jnp.inf), stable=True))


def convolve(weight: Float[Array, "M E"], feature: Float[Array, "h w E"]) -> Float[Array, "M h w"]:
    """Mask logits: every kernel as a 1x1 convolution of the encoded feature (paper eq. 3), in float32."""
    return jnp.einsum(
        "me,hwe->mhw",
        weight.astype(jnp.float32),
        feature.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
