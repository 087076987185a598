"""Position and segmentation losses (paper section 3.2): sums for one image, and how a batch puts them together.

Every denominator is a count over the global batch, so an image gives sums and counts (`LossSums`); the training step
adds them over the batch and calls `combine`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from pfcn_jax.panoptic.dice import streaming_dice
from pfcn_jax.panoptic.guidance import level_cells
from pfcn_jax.panoptic.options import LossOptions
from pfcn_jax.panoptic.targets import Targets
from pfcn_jax.types import DenseOutputs

# Replaces N_th, per image, in a batch without a single thing. (The original divides by 1 then, and the loss jumps by
# three orders of magnitude.)
_USUAL_POSITIVES = 10.0


@struct.dataclass
class LossSums:
    """Sums of one image; add them over the batch before `combine`. All float32 scalars."""

    centers: Float[Array, ""]  # focal loss summed over cells, classes and levels
    regions: Float[Array, ""]  # focal loss: mean over the cells of a level, summed over classes and levels
    thing_dice: Float[Array, ""]  # weighted dice summed over (instance, level) pairs with a kernel
    stuff_dice: Float[Array, ""]  # dice summed over (region channel, level) pairs
    positives: Float[Array, ""]  # (instance, level) pairs: N_th
    thing_pairs: Float[Array, ""]  # those of them with a kernel
    stuff_pairs: Float[Array, ""]
    images: Float[Array, ""]


def focal_loss(
    logits: Float[Array, "*n"], target: Float[Array, "*n"], *, alpha: float, gamma: float
) -> Float[Array, "*n"]:
    """Sigmoid focal loss with soft targets y, element by element, float32.

    alpha_t (1 - p_t)^gamma CE(p, y) with p_t = p y + (1 - p)(1 - y) and alpha_t = alpha y + (1 - alpha)(1 - y): both
    are interpolated (this is not the penalty-reduced form of CornerNet and CenterNet).
    """
    logits = logits.astype(jnp.float32)
    probability = jax.nn.sigmoid(logits)
    cross_entropy = jax.nn.softplus(logits) - logits * target
    truth = probability * target + (1.0 - probability) * (1.0 - target)
    balance = alpha * target + (1.0 - alpha) * (1.0 - target)
    return balance * (1.0 - truth) ** gamma * cross_entropy


def position_sums(
    center_logits: Sequence[Float[Array, "_hl _wl T"]],
    region_logits: Sequence[Float[Array, "_hl _wl C"]],
    targets: Targets,
    options: LossOptions,
) -> tuple[Float[Array, " L"], Float[Array, " L"]]:
    """Focal losses of object centers and stuff regions per level, over the cells of the padded image.

    Returns:
      The sum over cells and classes of the centers, and the mean over cells summed over classes of the regions.
    """
    used = level_cells(center_logits).used_sizes(targets.padded_size)

    @jax.checkpoint  # elementwise: cheaper to compute again than to keep five maps of it
    def total(logits: Array, target: Array, size: Array) -> Array:
        loss = focal_loss(logits, target, alpha=options.focal_alpha, gamma=options.focal_gamma)
        rows = jnp.arange(loss.shape[0], dtype=jnp.int32) < size[0]
        columns = jnp.arange(loss.shape[1], dtype=jnp.int32) < size[1]
        return jnp.sum(jnp.where((rows[:, None] & columns[None, :])[:, :, None], loss, 0.0))

    area = jnp.prod(used, axis=1).astype(jnp.float32)
    centers = jnp.stack([total(*level) for level in zip(center_logits, targets.center_heatmap, used)])
    regions = jnp.stack([total(*level) for level in zip(region_logits, targets.region_score, used)])
    return centers, regions / area


def thing_dice_sums(
    kernel: Float[Array, "P k E"], weight: Float[Array, "P k"], feature: Float[Array, "h w E"], targets: Targets
) -> Float[Array, " P"]:
    """Weighted dice of every (instance, level) pair: sum_i w_i Dice(P_i, Y); 0 for unused slots."""
    things = targets.things
    return streaming_dice(
        kernel, weight, things.valid, feature, targets.instance_masks, things.row, targets.padded_size
    )


def stuff_dice_sums(
    kernel: Float[Array, "Q E"], feature: Float[Array, "h w E"], targets: Targets
) -> Float[Array, " Q"]:
    """Dice of every (region channel, level) pair; 0 for unused slots.

    The mask is the class's soft label at 1/4 resolution, the same for all levels; "any thing" is one of the classes.
    """
    stuff = targets.stuff
    weight = jnp.ones((kernel.shape[0], 1), jnp.float32)
    masks = targets.region_masks
    return streaming_dice(kernel[:, None], weight, stuff.valid, feature, masks, stuff.class_id, targets.padded_size)


def loss_sums(
    outputs: DenseOutputs,
    thing_kernel: Float[Array, "P k E"],
    thing_weight: Float[Array, "P k"],
    stuff_kernel: Float[Array, "Q E"],
    targets: Targets,
    options: LossOptions,
) -> LossSums:
    """All sums of one image, from the network's outputs and the embedded kernels."""
    centers, regions = position_sums(outputs.center_logits, outputs.region_logits, targets, options)
    return LossSums(
        centers=jnp.sum(centers),
        regions=jnp.sum(regions),
        thing_dice=jnp.sum(thing_dice_sums(thing_kernel, thing_weight, outputs.feature, targets)),
        stuff_dice=jnp.sum(stuff_dice_sums(stuff_kernel, outputs.feature, targets)),
        **target_counts(targets),
    )


def target_counts(targets: Targets) -> dict[str, Float[Array, ""]]:
    """One image's share of the denominators of the losses. It follows from the labels alone."""
    return {
        "positives": targets.thing_count.astype(jnp.float32),
        "thing_pairs": jnp.sum(targets.things.valid, dtype=jnp.float32),
        "stuff_pairs": jnp.sum(targets.stuff.valid, dtype=jnp.float32),
        "images": jnp.ones((), jnp.float32),
    }


def combine(sums: LossSums, options: LossOptions) -> dict[str, Float[Array, ""]]:
    """The four losses of a batch from sums over all its images; their sum is the total loss.

    L_pos = sum FL(centers) / N_th + sum FL(regions) / batch; L_seg = mean WDice of things + mean Dice of stuff.

    Args:
      sums: scalars, added over the global batch.
    """
    positives = jnp.where(sums.positives > 0.0, sums.positives, _USUAL_POSITIVES * jnp.maximum(sums.images, 1.0))
    return {
        "loss_pos_th": options.position_weight * sums.centers / positives,
        "loss_pos_st": options.position_weight * sums.regions / jnp.maximum(sums.images, 1.0),
        "loss_seg_th": options.segmentation_weight * sums.thing_dice / jnp.maximum(sums.thing_pairs, 1.0),
        "loss_seg_st": options.segmentation_weight * sums.stuff_dice / jnp.maximum(sums.stuff_pairs, 1.0),
    }
