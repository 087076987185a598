"""Training losses against tensors recorded from the original implementation."""

from __future__ import annotations

import operator
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pfcn_jax.panoptic.guidance import GuidedKernels, guide_things, pool_stuff
from pfcn_jax.panoptic.losses import LossSums, combine, loss_sums, position_sums
from pfcn_jax.panoptic.options import LossOptions
from pfcn_jax.panoptic.targets import Slots, Targets
from pfcn_jax.studies.parity.reference import Check, Recorded, check, recorded_files
from pfcn_jax.studies.parity.targets import check_all_targets, recorded_labels, targets_of
from pfcn_jax.studies.reference_weights import make_state_dict
from pfcn_jax.types import LEVELS, DenseOutputs

Embedding = Callable[[jax.Array], jax.Array]
TOLERANCE = 1e-5  # relative of losses, absolute of scores and pooled kernels


def recorded_heads(reference: pathlib.Path, tag: str) -> DenseOutputs:
    """Full head outputs of a recorded batch, channels last, joined from the files `lossin_<tag>_{a,b,c}`."""
    arrays: dict[str, np.ndarray] = {}
    for part in recorded_files(reference, f"lossin_{tag}_*.npz"):
        arrays |= part.arrays

    def levels(name: str) -> tuple[jax.Array, ...]:
        return tuple(jnp.asarray(np.moveaxis(arrays[f"{level}.{name}"], 1, -1)) for level in LEVELS)

    feature = jnp.asarray(np.moveaxis(arrays["encode_feat"], 1, -1))
    return DenseOutputs(levels("pred_center"), levels("pred_region"), levels("pred_weights"), feature)


def recorded_embeddings(state_dict: dict[str, np.ndarray]) -> tuple[Embedding, Embedding]:
    """The original's two kernel embeddings (things, stuff) as functions of `[..., K]`."""

    def embedding(name: str) -> Embedding:
        weight = jnp.asarray(state_dict[f"{name}.embed_extractor.weight"][:, :, 0, 0].T)
        bias = jnp.asarray(state_dict[f"{name}.embed_extractor.bias"])

        def embed(kernel: jax.Array) -> jax.Array:
            embedded = jnp.matmul(kernel, weight, precision="highest")
            return embedded + jnp.broadcast_to(bias, embedded.shape)

        return embed

    return embedding("thing_generator"), embedding("stuff_generator")


@struct.dataclass
class ImageLosses:
    """What the losses of one image are made of."""

    sums: LossSums
    centers: jax.Array  # per level
    regions: jax.Array
    guided: GuidedKernels
    pooled: jax.Array  # stuff kernels before embedding
    thing_kernel: jax.Array
    stuff_kernel: jax.Array


def image_losses(
    dense: DenseOutputs, targets: Targets, *, embed_things: Embedding, embed_stuff: Embedding, num_positions: int
) -> ImageLosses:
    """Our losses of one image from the heads' outputs."""
    options = LossOptions(positives=num_positions)
    guided = guide_things(
        dense.center_logits,
        dense.kernel_map,
        targets,
        num_positions=options.positives,
        weighted=options.weighted_dice,
    )
    pooled = pool_stuff(dense.kernel_map, targets)
    things, stuff = embed_things(guided.kernel), embed_stuff(pooled)
    sums = loss_sums(dense, things, guided.weight, stuff, targets, options)
    centers, regions = position_sums(dense.center_logits, dense.region_logits, targets, options)
    return ImageLosses(sums, centers, regions, guided, pooled, things, stuff)


def sum_over_images(parts: Sequence[ImageLosses]) -> LossSums:
    """The sums of a batch."""
    return jax.tree.map(lambda *values: sum(values[1:], values[0]), *[part.sums for part in parts])


def check_losses(
    recorded: Recorded, dense: DenseOutputs, embed_things: Embedding, embed_stuff: Embedding
) -> list[Check]:
    """The four losses of a `train_*` file and their parts, from a batch of head outputs.

    Args:
      dense: head outputs of the batch `[B, ...]`: recorded ones, or our network's.
    """
    losses_of = jax.jit(image_losses, static_argnames=("embed_things", "embed_stuff", "num_positions"))
    images, parts = [], []
    for image in range(int(recorded["batch"])):
        targets = targets_of(recorded_labels(recorded, image))
        images.append(targets)
        parts.append(
            losses_of(
                jax.tree.map(operator.itemgetter(image), dense),
                targets,
                embed_things=embed_things,
                embed_stuff=embed_stuff,
                num_positions=recorded.config["pos_num"],
            )
        )
    losses = combine(sum_over_images(parts), LossOptions())
    expected = {**recorded.json("loss_f64"), "total_loss": float(recorded["total_loss"])}
    losses["total_loss"] = sum(losses.values(), start=jnp.zeros(()))
    checks = [_check_scalar(recorded, name, float(value), expected[name]) for name, value in losses.items()]
    for index in range(len(LEVELS)):
        checks += _check_level_parts(recorded, images, parts, index)
    return checks + _check_logits(recorded, dense, images, parts)


def _check_scalar(recorded: Recorded, name: str, ours: float, theirs: float) -> Check:
    return check(recorded.name, name, np.asarray(ours), np.asarray(theirs), TOLERANCE * abs(theirs))


def _check_level_parts(recorded: Recorded, images: list[Targets], parts: list[ImageLosses], index: int) -> list[Check]:
    level = LEVELS[index]
    checks = []
    for name, ours in (("th", [part.centers for part in parts]), ("st", [part.regions for part in parts])):
        title = f"{level}.loss_pos_{name}_sum"
        checks.append(_check_scalar(recorded, title, sum(float(v[index]) for v in ours), float(recorded[title])))
    things = [np.asarray(part.guided.score)[_on_level(targets.things, index)] for targets, part in zip(images, parts)]
    stuff = [np.asarray(part.pooled)[_on_level(targets.stuff, index)] for targets, part in zip(images, parts)]
    for name, number, values in (("guided_weights", "thing_nums", things), ("stuff_pooled", "stuff_nums", stuff)):
        theirs = recorded[f"{level}.{name}"]
        theirs = theirs.reshape(*theirs.shape[:2], -1)
        # The original's slots of a level: as many as the image with the most instances needs, at least one.
        slots = max(1, *(len(v) for v in values))
        padded = [np.pad(v, [(0, slots - len(v)), (0, 0)]) for v in values]
        checks.append(check(recorded.name, f"{level} {number}", np.asarray(slots), recorded[number][index], 0.0))
        checks.append(check(recorded.name, f"{level}.{name}", np.stack(padded), theirs, TOLERANCE))
    return checks


def _on_level(slots: Slots, index: int) -> np.ndarray:
    return np.asarray(slots.valid & (slots.level == index))


def _check_logits(
    recorded: Recorded, dense: DenseOutputs, images: list[Targets], parts: list[ImageLosses]
) -> list[Check]:
    """Mask logits of the slots in use; the channels of a file are (level, slot, position) with a fixed step."""
    checks = []
    k = recorded.config["pos_num"]
    for name, per_slot, number in (("thing_logits", k, "thing_nums"), ("stuff_logits", 1, "stuff_nums")):
        step = recorded.meta[name]["step"]
        first = np.concatenate([[0], np.cumsum(recorded[number])]) * per_slot
        for image, (targets, part) in enumerate(zip(images, parts)):
            slots = targets.things if per_slot == k else targets.stuff
            kernel = np.asarray(part.thing_kernel if per_slot == k else part.stuff_kernel[:, None], np.float32)
            found = np.asarray(part.guided.score > 0.0) if per_slot == k else np.asarray(slots.valid)[:, None]
            ours, theirs = [], []
            for index in range(len(LEVELS)):
                here = _on_level(slots, index)
                flat, exists = kernel[here].reshape(-1, kernel.shape[-1]), found[here].reshape(-1)
                channel = first[index] + np.arange(len(flat))
                kept = exists & (channel % step == 0)
                ours.append(np.einsum("ne,hwe->nhw", flat[kept], np.asarray(dense.feature[image])))
                theirs.append(recorded[name][image][channel[kept] // step])
            tolerance = 3 * TOLERANCE * recorded.meta[name]["absmax"]
            title = f"[{image}] {name}"
            checks.append(check(recorded.name, title, np.concatenate(ours), np.concatenate(theirs), tolerance))
    return checks


def check_recorded_losses(reference: pathlib.Path) -> list[Check]:
    """The losses alone, from the recorded head outputs of every batch that has them in full."""
    checks = []
    tags = sorted({path.stem.removeprefix("lossin_")[:-2] for path in (reference / "tensors").glob("lossin_*.npz")})
    for tag in tags:
        for recorded in recorded_files(reference, f"train_{tag}.npz"):
            embeddings = recorded_embeddings(make_state_dict(reference, recorded.config["config"]))
            checks += check_losses(recorded, recorded_heads(reference, tag), *embeddings)
    return checks


def check_training(reference: pathlib.Path) -> list[Check]:
    """Targets of every recorded batch, and the losses from recorded head outputs (the network: see `gradients`)."""
    return check_all_targets(reference) + check_recorded_losses(reference)
