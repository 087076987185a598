"""Panoptic FCN on one page: the loss, the training step and the prediction, each ONE compiled program.

    picture -> generate (network) -> pick or guide (which positions) -> embed -> kernels
            -> [fuse] -> convolve with the encoded feature -> losses | merge

The network sees the whole batch; what follows is written for one picture and runs picture by picture on the device
that holds it (`per_picture`), so that its time follows the instances that are there. Only in training on a GPU do the
pictures run side by side.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from pfcn_jax.config.schema import Config
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.rules import stop_frozen, update_average
from pfcn_jax.optim.state import TrainState
from pfcn_jax.panoptic.guidance import guide_things, pool_stuff
from pfcn_jax.panoptic.losses import LossSums, combine, loss_sums, target_counts
from pfcn_jax.panoptic.options import LossOptions, PredictOptions, TargetOptions, TTAOptions
from pfcn_jax.panoptic.predict import Prediction, predict_image
from pfcn_jax.panoptic.targets import Targets, make_targets
from pfcn_jax.panoptic.views import View, make_view
from pfcn_jax.parallel.sharding import split_batch
from pfcn_jax.types import STRIDES, Batch, DenseOutputs, round_up

PyTree = Any
Scalars = dict[str, Float[Array, ""]]


def per_picture(
    function: Callable[..., PyTree], mesh: Mesh | None, *shared: PyTree, side_by_side: bool = False
) -> Callable[..., PyTree]:
    """A function of `shared` and one picture's arrays -> one of a batch's: a loop over the pictures of each device.

    Args:
      side_by_side: the pictures of a device all at once, for what would be many small kernels in the loop.
    """

    def over_batch(shared: tuple[PyTree, ...], arrays: tuple[PyTree, ...]) -> PyTree:
        if side_by_side:
            return jax.vmap(lambda *picture: function(*shared, *picture))(*arrays)
        return jax.lax.map(lambda picture: function(*shared, *picture), arrays)

    if mesh is not None:
        batch = PartitionSpec("data")
        specs = (PartitionSpec(), batch)
        over_batch = jax.shard_map(over_batch, mesh=mesh, in_specs=specs, out_specs=batch, check_vma=False)
    return lambda *arrays: over_batch(shared, arrays)


def _on_gpu(mesh: Mesh | None) -> bool:
    """Where a loop over pictures costs more in launches than in work. (A CPU's caches want it, a TPU's memory.)"""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return platform in ("gpu", "cuda", "rocm")


def picture_extent(size: Int[Array, "B 2"], canvas: tuple[int, ...], padding: str) -> Int[Array, "B 2"]:
    """How much of the canvas counts: each picture rounded up to 32, or (as the original trains) all of it."""
    if padding == "canvas":
        return jnp.broadcast_to(jnp.asarray(canvas, jnp.int32)[None], size.shape)
    return round_up(size)


def level_shapes(canvas: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(hl, wl) of p3..p7 on a canvas."""
    return tuple((-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in STRIDES)


def generate(variables: PyTree, image: Array, size: Array, extent: Array, model: PanopticFCN) -> DenseOutputs:
    """The network on a batch: what it says at every position."""
    return cast(DenseOutputs, model.apply(variables, image, size, extent))


def generate_apart(
    variables: PyTree, image: Array, size: Array, extent: Array, model: PanopticFCN, mesh: Mesh | None
) -> DenseOutputs:
    """`generate` for prediction. A CPU takes picture by picture: a batch would not fit into its caches."""
    together = functools.partial(generate, model=model)
    if image.shape[0] == 1:
        return together(variables, image, size, extent)

    def one(variables: PyTree, *picture: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[0], together(variables, *(array[None] for array in picture)))

    def apart(variables: PyTree, *pictures: Array) -> PyTree:
        return per_picture(one, mesh, variables)(*pictures)

    dense = jax.lax.platform_dependent(variables, image, size, extent, cpu=apart, default=together)
    return cast(DenseOutputs, dense)


def batch_targets(
    batch: Batch,
    extent: Array,
    model: PanopticFCN,
    config: TargetOptions,
    mesh: Mesh | None,
    keep: Callable[[Targets], PyTree] = lambda targets: targets,
) -> PyTree:
    """Everything the heads should say, derived on the device from the id map and the table of segments.

    Args:
      keep: what is wanted of each picture's targets; the rest is not computed.
    """

    def one(segment_map: Array, segments: Any, size: Array, extent: Array) -> PyTree:
        targets = make_targets(
            segment_map,
            segments,
            size,
            extent,
            num_things=model.num_things,
            num_stuff=model.num_stuff,
            level_shapes=level_shapes(segment_map.shape),
            max_positives=config.max_positives,
            level_ranges=config.level_ranges,
            center=config.center,
            min_overlap=config.min_overlap,
            thing_regions=model.thing_regions,
        )
        return keep(targets)

    return per_picture(one, mesh, side_by_side=_on_gpu(mesh))(batch.segment_map, batch.segments, batch.size, extent)


def batch_losses(
    variables: PyTree, dense: DenseOutputs, targets: Targets, model: PanopticFCN, config: LossOptions, mesh: Mesh | None
) -> LossSums:
    """The sums of every picture `[B]`: guide the kernels by the targets, embed, convolve, compare."""

    def guide(dense: DenseOutputs, targets: Targets) -> tuple[Array, Array, Array]:
        things = guide_things(
            dense.center_logits,
            dense.kernel_map,
            targets,
            num_positions=config.positives,
            weighted=config.weighted_dice,
        )
        return things.kernel, things.weight, pool_stuff(dense.kernel_map, targets)

    def compare(dense: DenseOutputs, things: Array, weight: Array, stuff: Array, targets: Targets) -> LossSums:
        return loss_sums(
            dense.center_logits,
            dense.region_logits,
            dense.feature,
            things,
            weight,
            stuff,
            targets,
            alpha=config.focal_alpha,
            gamma=config.focal_gamma,
        )

    together = _on_gpu(mesh)
    things, weight, stuff = per_picture(guide, mesh, side_by_side=together)(dense, targets)
    things = model.apply(variables, things, method="embed_things")
    stuff = model.apply(variables, stuff, method="embed_stuff")
    return per_picture(compare, mesh, side_by_side=together)(dense, things, weight, stuff, targets)


def loss_fn(
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    *,
    model: PanopticFCN,
    config: Config,
    mesh: Mesh | None = None,
    counts: Scalars | None = None,
) -> tuple[Float[Array, ""], Scalars]:
    """The total loss of the global batch, and the four losses it is made of (paper equation 7).

    Args:
      counts: the denominators (`batch_counts`) of a larger batch that this one is a part of. Each loss is then the
        part's share: the losses of all parts add up to those of the larger batch, and so do their gradients.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    extent = picture_extent(batch.size, batch.image.shape[1:3], config.targets.padding)
    dense = generate(variables, batch.image, batch.size, extent, model)
    targets = batch_targets(batch, extent, model, config.targets, mesh)
    sums = batch_losses(variables, dense, targets, model, config.loss, mesh)
    sums = _over_pictures(sums, batch)
    divided = sums if counts is None else dataclasses.replace(sums, **counts)
    losses = combine(
        divided, position_weight=config.loss.position_weight, segment_weight=config.loss.segmentation_weight
    )
    total = sum(losses.values(), start=jnp.zeros(()))
    scalars = {"loss": total, **losses, "positives": sums.positives}
    scalars["dropped_positives"] = jnp.sum(targets.dropped, dtype=jnp.float32)
    if batch.dropped_segments is not None:
        scalars["dropped_segments"] = jnp.sum(batch.dropped_segments, dtype=jnp.float32)
    return total, scalars


def batch_counts(batch: Batch, *, model: PanopticFCN, config: Config, mesh: Mesh | None) -> Scalars:
    """What the losses of a batch are divided by: sums over its pictures, from the labels alone (no network)."""
    extent = picture_extent(batch.size, batch.image.shape[1:3], config.targets.padding)
    counts = batch_targets(batch, extent, model, config.targets, mesh, keep=target_counts)
    return cast(Scalars, _over_pictures(counts, batch))


def _over_pictures(tree: PyTree, batch: Batch) -> PyTree:
    return jax.tree.map(lambda picture: jnp.sum(jnp.where(batch.valid, picture, 0.0)), tree)


def gradients_of(
    state: TrainState, batch: Batch, *, model: PanopticFCN, config: Config, mesh: Mesh | None
) -> tuple[PyTree, Scalars]:
    """Gradients and losses of a batch, at once or in `config.train.accumulate` parts one after the other.

    The losses are ratios of sums over the batch. Their denominators do not depend on the network, so they are counted
    over the whole batch first; then the parts only add up, and the result is the large batch's, not a mean of means.
    """

    def loss(params: PyTree, batch: Batch, counts: Scalars | None) -> tuple[Float[Array, ""], Scalars]:
        params = stop_frozen(params, config.optim.frozen)
        return loss_fn(params, state.batch_stats, batch, model=model, config=config, mesh=mesh, counts=counts)

    differentiate = jax.grad(loss, has_aux=True)
    parts = config.train.accumulate
    if parts == 1:
        return differentiate(state.params, batch, None)
    counts = batch_counts(batch, model=model, config=config, mesh=mesh)

    def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, differentiate(state.params, part, counts)), None

    split = split_batch(batch, parts, mesh)
    first = jax.tree.map(lambda leaf: leaf[0], split)
    shapes = jax.eval_shape(differentiate, state.params, first, counts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return cast(tuple[PyTree, Scalars], jax.lax.scan(add, zeros, split)[0])


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: PanopticFCN,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh | None = None,
) -> tuple[TrainState, Scalars]:
    """Loss, gradients, update, and the moving average of the weights if there is one: the whole training program.

    A step whose loss, gradients or new parameters are not finite changes nothing but the step's number (`skipped`: 1).
    """
    gradients, scalars = gradients_of(state, batch, model=model, config=config, mesh=mesh)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars["grad_norm"] = optax.tree.norm(gradients)
    average = state.average
    if average is not None:
        average = update_average(average, params, state.step, decay=config.train.ema_decay)
    after = dataclasses.replace(state, params=params, opt_state=opt_state, average=average)
    finite = _all_finite((scalars["loss"], gradients, params))
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
    scalars["skipped"] = 1.0 - finite.astype(jnp.float32)
    return dataclasses.replace(after, step=state.step + 1), scalars


def _all_finite(tree: PyTree) -> Array:
    largest = jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)])  # what is not finite stays so
    # Asked of all together: hundreds of answers that are put together one by one XLA repeats in each leaf's update.
    return jnp.all(jnp.isfinite(largest))


def generate_views(
    variables: PyTree, image: Array, size: Array, model: PanopticFCN, tta: TTAOptions | None, mesh: Mesh | None
) -> tuple[tuple[DenseOutputs, View], ...]:
    """The network on further views of a batch (test-time augmentation): other scales, and mirror images of all."""
    if tta is None:
        return ()
    kinds = [
        (scale, mirrored) for scale in (1.0, *tta.scales) for mirrored in ((False, True) if tta.flip else (False,))
    ]
    made = [jax.vmap(functools.partial(make_view, scale=s, mirrored=m))(image, size) for s, m in kinds[1:]]
    return tuple(
        (generate_apart(variables, picture, view.size, view.extent, model, mesh), view) for picture, view in made
    )


def segment(
    variables: PyTree,
    dense: DenseOutputs,
    size: Int[Array, " 2"],
    extent: Int[Array, " 2"],
    original_size: Int[Array, " 2"],
    others: tuple[tuple[DenseOutputs, View], ...] = (),
    *,
    model: PanopticFCN,
    **settings: Any,
) -> Prediction:
    """From what the network says about ONE picture (and about further views of it) to its segments.

    Args:
      settings: those of `predict_image`.
    """
    return predict_image(
        dense,
        lambda kernels: cast(Array, model.apply(variables, kernels, method="embed_things")),
        lambda kernels: cast(Array, model.apply(variables, kernels, method="embed_stuff")),
        size,
        extent,
        original_size,
        others=others,
        thing_regions=model.thing_regions,
        **settings,
    )


def predict_step(
    variables: PyTree,
    image: UInt8[Array, "B H W 3"],
    size: Int[Array, "B 2"],
    original_size: Int[Array, "B 2"],
    *,
    model: PanopticFCN,
    config: PredictOptions,
    output_shape: tuple[int, int],
    tta: TTAOptions | None = None,
    mesh: Mesh | None = None,
    with_thing_masks: bool = False,
    with_semantic_map: bool = False,
) -> Prediction:
    """From uint8 pictures to panoptic ids at each picture's original size: the whole prediction program.

    Sizes are data; only the canvas and `output_shape` are compiled in. `output_shape` must hold every original size:
    the program cannot see that one is larger, and cuts it (`crop_prediction` finds that out). `tta` adds views.
    """
    extent = picture_extent(size, image.shape[1:3], "picture")
    dense = generate_apart(variables, image, size, extent, model, mesh)
    others = generate_views(variables, image, size, model, tta, mesh)
    one = functools.partial(
        segment,
        model=model,
        output_shape=output_shape,
        with_thing_masks=with_thing_masks,
        with_semantic_map=with_semantic_map,
        **dataclasses.asdict(config),
    )
    return cast(Prediction, per_picture(one, mesh, variables)(dense, size, extent, original_size, others))
