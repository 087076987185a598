"""Panoptic FCN on one page: the loss, the training step and the prediction, each ONE compiled program.

    image -> generate (network) -> pick or guide (which positions) -> embed -> kernels
          -> [fuse] -> convolve with the encoded feature -> losses | merge

The network runs on the whole batch. What follows is written for one image and loops over the images of each device
(`per_image`), so that its time follows the instances that are there. Only training on a GPU maps over them at once.
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
from pfcn_jax.panoptic.options import LossOptions, OutputSpec, PredictOptions, TargetOptions, TTAOptions
from pfcn_jax.panoptic.predict import Embeddings, Prediction, predict_image
from pfcn_jax.panoptic.targets import Targets, make_targets
from pfcn_jax.panoptic.views import View, make_view
from pfcn_jax.parallel.platform import by_platform, launches_dominate
from pfcn_jax.parallel.sharding import split_batch
from pfcn_jax.types import Batch, DenseOutputs, ImageGeometry, SegmentTable, image_geometry

PyTree = Any
Scalars = dict[str, Float[Array, ""]]


def per_image(
    function: Callable[..., PyTree], mesh: Mesh | None, *shared: PyTree, at_once: bool = False
) -> Callable[..., PyTree]:
    """Maps a function of `shared` and one image's arrays over a batch: a loop over the images of each device.

    Args:
      at_once: vmap instead of a loop, for what would be many small kernels in the loop.
    """

    def over_batch(shared: tuple[PyTree, ...], arrays: tuple[PyTree, ...]) -> PyTree:
        if at_once:
            return jax.vmap(lambda *image: function(*shared, *image))(*arrays)
        return jax.lax.map(lambda image: function(*shared, *image), arrays)

    if mesh is not None:
        batch = PartitionSpec("data")
        specs = (PartitionSpec(), batch)
        over_batch = jax.shard_map(over_batch, mesh=mesh, in_specs=specs, out_specs=batch, check_vma=False)
    return lambda *arrays: over_batch(shared, arrays)


def batch_geometry(batch: Batch, options: TargetOptions) -> ImageGeometry:
    """The geometry of a training batch."""
    canvas = batch.image.shape[1:3] if options.padding == "canvas" else None
    return image_geometry(batch.size, batch.original_size, canvas=canvas)


def generate(
    variables: PyTree, image: Array, geometry: ImageGeometry, model: PanopticFCN, drop_path: Array | None = None
) -> DenseOutputs:
    """The network's outputs for a batch, at every position. `drop_path`: key of training's stochastic depth."""
    rngs = None if drop_path is None else {"drop_path": drop_path}
    return cast(DenseOutputs, model.apply(variables, image, geometry.size, geometry.padded_size, rngs=rngs))


def generate_for_prediction(
    variables: PyTree, image: Array, geometry: ImageGeometry, model: PanopticFCN, mesh: Mesh | None
) -> DenseOutputs:
    """`generate`, image by image on a CPU: activations of a batch would not fit into its caches."""

    def whole_batch(variables: PyTree, image: Array, geometry: ImageGeometry) -> DenseOutputs:
        return generate(variables, image, geometry, model)

    if image.shape[0] == 1:
        return whole_batch(variables, image, geometry)

    def one(variables: PyTree, *arrays: PyTree) -> PyTree:
        alone = jax.tree.map(lambda leaf: leaf[None], arrays)
        return jax.tree.map(lambda leaf: leaf[0], whole_batch(variables, *alone))

    def looped(variables: PyTree, *arrays: PyTree) -> PyTree:
        return per_image(one, mesh, variables)(*arrays)

    dense = by_platform(variables, image, geometry, cpu=looped, default=whole_batch)
    return cast(DenseOutputs, dense)


def batch_targets(
    batch: Batch,
    geometry: ImageGeometry,
    model: PanopticFCN,
    options: TargetOptions,
    mesh: Mesh | None,
    select: Callable[[Targets], PyTree] = lambda targets: targets,
) -> PyTree:
    """Targets of the heads, derived on the device from the id map and the table of segments.

    Args:
      select: the part of an image's targets to return; the rest is not computed.
    """

    def one(segment_map: Array, segments: SegmentTable, geometry: ImageGeometry) -> PyTree:
        return select(make_targets(segment_map, segments, geometry, model.regions, options))

    return per_image(one, mesh, at_once=launches_dominate(mesh))(batch.segment_map, batch.segments, geometry)


def batch_losses(
    variables: PyTree,
    dense: DenseOutputs,
    targets: Targets,
    model: PanopticFCN,
    options: LossOptions,
    mesh: Mesh | None,
) -> LossSums:
    """The loss sums of every image `[B]`: guide the kernels by the targets, embed, convolve, compare."""

    def guide(dense: DenseOutputs, targets: Targets) -> tuple[Array, Array, Array]:
        things = guide_things(
            dense.center_logits,
            dense.kernel_map,
            targets,
            num_positions=options.positives,
            weighted=options.weighted_dice,
        )
        return things.kernel, things.weight, pool_stuff(dense.kernel_map, targets)

    def compare(dense: DenseOutputs, things: Array, weight: Array, stuff: Array, targets: Targets) -> LossSums:
        return loss_sums(dense, things, weight, stuff, targets, options)

    at_once = launches_dominate(mesh)
    things, weight, stuff = per_image(guide, mesh, at_once=at_once)(dense, targets)
    things = model.apply(variables, things, method="embed_things")
    stuff = model.apply(variables, stuff, method="embed_stuff")
    return per_image(compare, mesh, at_once=at_once)(dense, things, weight, stuff, targets)


def loss_fn(
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    *,
    model: PanopticFCN,
    config: Config,
    mesh: Mesh | None = None,
    counts: Scalars | None = None,
    drop_path: Array | None = None,
) -> tuple[Float[Array, ""], Scalars]:
    """The total loss of the global batch, and the four losses it is made of (paper equation 7).

    Args:
      counts: the denominators (`batch_counts`) of a larger batch that this one is a part of. The losses of all parts
        then add up to those of the larger batch, and so do their gradients.
      drop_path: key of the backbone's stochastic depth; None: nothing is dropped.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    geometry = batch_geometry(batch, config.targets)
    dense = generate(variables, batch.image, geometry, model, drop_path)
    targets = batch_targets(batch, geometry, model, config.targets, mesh)
    sums = batch_losses(variables, dense, targets, model, config.loss, mesh)
    sums = _sum_images(sums, batch)
    divided = sums if counts is None else dataclasses.replace(sums, **counts)
    losses = combine(divided, config.loss)
    total = sum(losses.values(), start=jnp.zeros(()))
    scalars = {"loss": total, **losses, "positives": sums.positives}
    scalars["dropped_positives"] = jnp.sum(targets.dropped, dtype=jnp.float32)
    if batch.dropped_segments is not None:
        scalars["dropped_segments"] = jnp.sum(batch.dropped_segments, dtype=jnp.float32)
    return total, scalars


def batch_counts(batch: Batch, *, model: PanopticFCN, config: Config, mesh: Mesh | None) -> Scalars:
    """Denominators of the losses of a batch: sums over its images, from the labels alone (no network)."""
    geometry = batch_geometry(batch, config.targets)
    counts = batch_targets(batch, geometry, model, config.targets, mesh, select=target_counts)
    return cast(Scalars, _sum_images(counts, batch))


def _sum_images(tree: PyTree, batch: Batch) -> PyTree:
    return jax.tree.map(lambda per_image: jnp.sum(jnp.where(batch.valid, per_image, 0.0)), tree)


def gradients_of(
    state: TrainState, batch: Batch, *, model: PanopticFCN, config: Config, mesh: Mesh | None
) -> tuple[PyTree, Scalars]:
    """Gradients and losses of a batch, at once or in `config.train.accumulate` parts in sequence.

    The losses are ratios of sums over the batch. Their denominators do not depend on the network, so they are counted
    over the whole batch first; then the parts add up to the result of the large batch, not to a mean of means.
    """

    def loss(params: PyTree, batch: Batch, counts: Scalars | None, part: Array) -> tuple[Float[Array, ""], Scalars]:
        params = stop_frozen(params, config.optim.frozen)
        key = drop_path_key(config, state.step, part)
        return loss_fn(
            params, state.batch_stats, batch, model=model, config=config, mesh=mesh, counts=counts, drop_path=key
        )

    differentiate = jax.grad(loss, has_aux=True)
    parts = config.train.accumulate
    if parts == 1:
        return differentiate(state.params, batch, None, jnp.int32(0))
    counts = batch_counts(batch, model=model, config=config, mesh=mesh)

    def add(total: PyTree, numbered: tuple[Batch, Array]) -> tuple[PyTree, None]:
        part, number = numbered
        return jax.tree.map(jnp.add, total, differentiate(state.params, part, counts, number)), None

    split = split_batch(batch, parts, mesh)
    first = jax.tree.map(lambda leaf: leaf[0], split)
    shapes = jax.eval_shape(differentiate, state.params, first, counts, jnp.int32(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return cast(tuple[PyTree, Scalars], jax.lax.scan(add, zeros, (split, jnp.arange(parts)))[0])


def drop_path_key(config: Config, step: Array, part: Array) -> Array | None:
    """The key of stochastic depth in a part of a step, by `config.seed`; None where the config drops nothing."""
    if config.model.drop_path == 0.0:
        return None
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), part)


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

    A step with a loss, gradient or new parameter that is not finite only increments the step (`skipped`: 1).
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
    largest = jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)])  # max propagates NaN and inf
    # Reduce once: separate isfinite checks get duplicated into every parameter's update fusion.
    return jnp.all(jnp.isfinite(largest))


def generate_views(
    variables: PyTree, image: Array, size: Array, model: PanopticFCN, tta: TTAOptions, mesh: Mesh | None
) -> tuple[tuple[DenseOutputs, View], ...]:
    """The network's outputs for further views of a batch (test-time augmentation): other scales, and mirror images."""
    kinds = [
        (scale, mirrored) for scale in (1.0, *tta.scales) for mirrored in ((False, True) if tta.flip else (False,))
    ]
    made = [jax.vmap(functools.partial(make_view, scale=s, mirrored=m))(image, size) for s, m in kinds[1:]]
    return tuple((generate_for_prediction(variables, shown, view.geometry, model, mesh), view) for shown, view in made)


def embeddings(variables: PyTree, model: PanopticFCN) -> Embeddings:
    """The model's embeddings of kernels."""
    return Embeddings(
        things=lambda kernels: cast(Array, model.apply(variables, kernels, method="embed_things")),
        stuff=lambda kernels: cast(Array, model.apply(variables, kernels, method="embed_stuff")),
    )


def segment(
    variables: PyTree,
    dense: DenseOutputs,
    geometry: ImageGeometry,
    views: tuple[tuple[DenseOutputs, View], ...] = (),
    *,
    model: PanopticFCN,
    options: PredictOptions,
    output: OutputSpec,
) -> Prediction:
    """From the network's outputs for ONE image (and for further views of it) to its segments."""
    embed = embeddings(variables, model)
    return predict_image(dense, embed, geometry, options, model.regions, output, views)


def predict_step(
    variables: PyTree,
    image: UInt8[Array, "B H W 3"],
    size: Int[Array, "B 2"],
    original_size: Int[Array, "B 2"],
    *,
    model: PanopticFCN,
    config: Config,
    output: OutputSpec,
    mesh: Mesh | None = None,
) -> Prediction:
    """From uint8 images to panoptic ids at each image's original size: the whole prediction program.

    Sizes are data; only the canvas, `config` (its sections `inference` and `tta`) and `output` are compiled in.
    `output.shape` must hold every original size: the program cannot see that one is larger, and cuts it
    (`crop_prediction` finds that out).
    """
    geometry = image_geometry(size, original_size)
    dense = generate_for_prediction(variables, image, geometry, model, mesh)
    views = generate_views(variables, image, size, model, config.tta, mesh)
    one = functools.partial(segment, model=model, options=config.inference, output=output)
    return cast(Prediction, per_image(one, mesh, variables)(dense, geometry, views))
