"""The two programs are each one compiled program: no callbacks, no recompilation, the same on one or two devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pfcn_jax import steps
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.inputs import open_split, train_pipeline
from pfcn_jax.models.build import build_model
from pfcn_jax.panoptic.options import OutputSpec
from pfcn_jax.parallel.sharding import data_mesh, shard_batch
from pfcn_jax.steps import loss_fn, predict_step, train_step
from pfcn_jax.training.state import build_optimizer, create_state
from pfcn_jax.types import image_geometry
from tests.support.tiny import TINY

SGD = ["--config.optim.name=sgd", "--config.optim.learning_rate=0.01"]


@pytest.fixture(scope="module")
def parts():
    """Config, model, mesh, state, and an iterator over batches."""
    config = from_command_line([*TINY, *SGD, "--config.train.steps=100", "--config.train.ema_decay=0.3"])
    source = open_split(config.data, "train", 0)
    model, mesh = (
        build_model(config.model, *source.classes.counts),
        data_mesh(),
    )
    return (
        config,
        model,
        mesh,
        create_state(config, model, mesh),
        train_pipeline(config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1)),
    )


@pytest.fixture(scope="module")
def train(parts):
    config, model, mesh, *_ = parts
    return _compiled_train_step(config, model, mesh)


def _compiled_train_step(config, model, mesh):
    optimizer = build_optimizer(config, model)
    return jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, config=config, mesh=mesh))


def _predict(config, model, mesh=None):
    step = functools.partial(predict_step, model=model, config=config, output=OutputSpec((96, 96)), mesh=mesh)
    return jax.jit(step)


@pytest.mark.slow
def test_twenty_mixed_batches_compile_once(parts, train):
    config, model, mesh, state, pipeline = parts
    step, predict = train, _predict(config, model, mesh)
    losses = []
    with iter(pipeline) as batches:
        for number in range(20):
            batch = next(batches)
            # Mixed: other image sizes, other original sizes, empty images, all void.
            size = np.array([[64, 64 - 2 * number], [40 + number, 64]], np.int32)
            segments = dataclasses.replace(batch.segments, valid=batch.segments.valid & (number % 5 != 4))
            batch = dataclasses.replace(batch, size=size, segments=segments, original_size=size + number)
            placed = shard_batch(batch, mesh)
            state, scalars = step(state, placed)
            losses.append(float(scalars["loss"]))
            predict(state.variables, placed.image, placed.size, placed.original_size)
    assert np.isfinite(losses).all()
    assert step._cache_size() == 1 and predict._cache_size() == 1


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_one_value_of_any_leaf_that_is_not_finite_is_seen(bad):
    tree = {"a": jnp.zeros((3, 4)), "b": [jnp.float32(3e38), -jnp.ones(5)]}
    assert bool(steps._all_finite(tree))
    if bad is not None:
        for at in range(3):
            leaves = jax.tree.leaves(tree)
            leaves[at] = leaves[at].at[...].set(bad) if leaves[at].ndim == 0 else leaves[at].at[-1].set(bad)
            assert not bool(steps._all_finite(leaves))


def test_the_finite_check_is_computed_once_and_not_in_the_update_of_every_leaf():
    """It was, and made the program of 200 leaves ten times as long: a minute and gigabytes more for the compiler."""
    leaves = [jnp.zeros((size, 3)) for size in range(1, 41)]

    def update(old, new):
        finite = steps._all_finite(new)
        return [jnp.where(finite, b, a) for a, b in zip(old, new)]

    assert jax.jit(update).lower(leaves, leaves).compile().as_text().count(" and(") <= 2


def test_both_programs_lower_for_every_platform(parts, train):
    """And hold nothing that only one has, that calls the host, or whose shape is not known."""
    config, model, mesh, state, pipeline = parts
    batch = shard_batch(next(iter(pipeline)), mesh)
    arrays = (state.variables, batch.image, batch.size, batch.original_size)
    platforms = ("cpu", "cuda", "tpu")
    for step, arguments in ((train, (state, batch)), (_predict(config, model, mesh), arrays)):
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        exported = export.export(step, platforms=platforms)(*shapes)
        text = exported.mlir_module()
        assert exported.platforms == platforms
        assert "custom_call" not in text and "feed" not in text and "callback" not in text
        assert "tensor<?" not in text and "x?x" not in text


@pytest.mark.slow
def test_averaged_weights_follow_a_loop_in_numpy(parts, train):
    _, _, mesh, state, pipeline = parts
    expected = jax.device_get(state.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.average), expected)
    with iter(pipeline) as batches:
        for number in range(4):
            state, _ = train(state, shard_batch(next(batches), mesh))
            keep = min(0.3, (1 + number) / (10 + number))  # 0.1, 0.18, 0.25, 0.3: the warm-up, then the decay itself
            expected = jax.tree.map(lambda a, p, d=keep: d * a + (1 - d) * np.asarray(p), expected, state.params)
    average = jax.device_get(state.average)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6), average, expected)
    moved = jax.tree.map(lambda ours, raw: np.abs(ours - np.asarray(raw)).max(), average, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-4 and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(average))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.model["params"]), average)


@pytest.mark.slow
def test_two_devices_give_the_loss_and_gradients_of_one(parts):
    config, model, mesh, state, pipeline = parts
    batch = next(iter(pipeline))
    alone = data_mesh().devices.reshape(-1)[:1]
    single = jax.sharding.Mesh(alone, ("data",))
    results = []
    for each in (mesh, single, None):
        gradient = jax.jit(jax.grad(functools.partial(loss_fn, model=model, config=config, mesh=each), has_aux=True))
        placed = batch if each is None else shard_batch(batch, each)
        params, stats = jax.device_get((state.params, state.batch_stats))
        results.append(jax.device_get(gradient(params, stats, placed)))
    for gradients, scalars in results[1:]:
        np.testing.assert_allclose(scalars["loss"], results[0][1]["loss"], rtol=1e-5)
        largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
        close = functools.partial(np.testing.assert_allclose, atol=1e-5 * largest)
        jax.tree.map(close, gradients, results[0][0])


@pytest.mark.slow
def test_images_side_by_side_give_the_loss_and_gradients_of_a_loop(parts, monkeypatch):
    """What a GPU runs instead of the loop over images; one of the two has fewer instances than the other."""
    config, model, mesh, state, pipeline = parts
    batch = next(iter(pipeline))
    few = batch.segments.valid & (np.arange(batch.segments.valid.shape[1]) < np.array([[2], [64]]))
    batch = shard_batch(dataclasses.replace(batch, segments=dataclasses.replace(batch.segments, valid=few)), mesh)

    def differentiate(on_gpu):
        monkeypatch.setattr(steps, "launches_dominate", lambda mesh: on_gpu)
        loss = functools.partial(loss_fn, model=model, config=config, mesh=mesh)
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params, state.batch_stats, batch)

    ((loop, scalars), of_loop), ((together, _), of_together) = differentiate(False), differentiate(True)
    assert float(scalars["positives"]) > 0
    assert float(together) == pytest.approx(float(loop), rel=1e-6)
    for one, other in zip(jax.tree.leaves(of_loop), jax.tree.leaves(of_together), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(float(jnp.abs(one).max()), 1e-3))


@pytest.mark.slow
def test_filler_images_add_nothing_to_the_loss(parts):
    config, model, _, state, pipeline = parts
    batch = next(iter(pipeline))
    loss = jax.jit(functools.partial(loss_fn, model=model, config=config))
    first = jax.tree.map(lambda leaf: np.concatenate([leaf[:1], leaf[:1]]), batch)
    first = dataclasses.replace(first, valid=np.array([True, False]))
    alone = jax.tree.map(lambda leaf: leaf[:1], batch)
    both, _ = loss(state.params, state.batch_stats, first)
    one, _ = loss(state.params, state.batch_stats, alone)
    np.testing.assert_allclose(float(both), float(one), rtol=1e-5)


def test_extent_rounds_up_or_takes_the_canvas():
    size = jnp.asarray([[33, 64], [1, 95]], jnp.int32)
    assert image_geometry(size).padded_size.tolist() == [[64, 64], [32, 96]]
    assert image_geometry(size, canvas=(96, 128)).padded_size.tolist() == [[96, 128], [96, 128]]


def test_the_mesh_holds_the_devices_process_by_process(monkeypatch):
    devices = jax.devices()
    assert len(devices) > 1
    monkeypatch.setattr(jax, "devices", lambda: devices[::-1])
    assert data_mesh().devices.tolist() == devices
