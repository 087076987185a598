"""Ways to fit a step into memory change no number: parts, recomputation; bfloat16 keeps float32 where it must be."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.inputs import open_split, train_pipeline
from pfcn_jax.models.build import build_model
from pfcn_jax.parallel.sharding import data_mesh, shard_batch, split_batch
from pfcn_jax.steps import batch_counts, loss_fn, train_step
from pfcn_jax.training.state import build_optimizer, create_state
from tests.support.tiny import TINY

SGD = ["--config.optim.name=sgd", "--config.optim.learning_rate=0.05", "--config.train.steps=100"]


def _setup(*overrides: str):
    """Config, model, and the first batch: four images with very different numbers of instances."""
    config = from_command_line([*TINY, *SGD, "--config.train.batch_size=4", *overrides])
    source = open_split(config.data, "train", 0)
    model = build_model(config.model, *source.classes.counts)
    with iter(
        train_pipeline(config.data, source, batch_size=config.train.batch_size, seed=config.seed, process=(0, 1))
    ) as batches:
        batch = next(batches)
    valid = np.array(batch.segments.valid)
    valid[0], valid[1, 2:] = False, False  # nothing at all, and hardly anything
    valid_images = np.array([True, True, True, False])
    batch = batch.replace(segments=batch.segments.replace(valid=valid), valid=valid_images)
    return config, model, batch


def _step(config, model, mesh=None):
    optimizer = build_optimizer(config, model)
    return functools.partial(train_step, model=model, optimizer=optimizer, config=config, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_in_parts_equals_the_large_batch(devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    results = []
    for parts in (1, 2, 4)[: 4 // devices]:
        config, model, batch = _setup(f"--config.train.accumulate={parts}")
        state = create_state(config, model, mesh)
        step, placed = jax.jit(_step(config, model, mesh)), shard_batch(batch, mesh)
        for _ in range(2):
            state, scalars = step(state, placed)
        results.append(jax.device_get((scalars, state.params)))
    (large, expected), *others = results
    assert large["positives"] > 0
    for scalars, params in others:
        assert scalars.keys() == large.keys()
        for name, value in scalars.items():
            np.testing.assert_allclose(value, large[name], rtol=1e-5, err_msg=name)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), params, expected)


def test_denominators_are_counted_over_the_whole_batch_from_the_labels_alone():
    config, model, batch = _setup()
    counts = jax.jit(functools.partial(batch_counts, model=model, config=config, mesh=None))
    whole = jax.device_get(counts(batch))
    assert whole["images"] == 3 and whole["positives"] > whole["images"] and whole["stuff_pairs"] > 0
    alone = [jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], batch) for row in range(4)]
    summed = jax.tree.map(lambda *values: sum(map(float, values)), *[counts(image) for image in alone])
    assert summed == jax.tree.map(float, whole)


def test_parts_are_cut_from_the_rows_of_each_device():
    mesh = data_mesh()
    rows = shard_batch({"x": np.arange(16).reshape(8, 2)}, mesh)
    parts = split_batch(rows, 2, mesh)["x"]
    assert parts.shape == (2, 4, 2)
    for before, after in zip(rows["x"].addressable_shards, parts.addressable_shards):
        assert before.device == after.device
        np.testing.assert_array_equal(np.asarray(after.data).reshape(before.data.shape), before.data)
    np.testing.assert_array_equal(
        split_batch(jax.device_get(rows), 2, None)["x"][:, :, 0], [[0, 2, 4, 6], [8, 10, 12, 14]]
    )


def test_bfloat16_keeps_parameters_norms_and_losses_in_float32():
    config, model, batch = _setup(
        "--config.model.dtype=bfloat16", "--config.train.ema_decay=0.9", "--config.train.accumulate=2"
    )
    state = jax.eval_shape(lambda: create_state(config, model, data_mesh()))
    after, scalars = jax.eval_shape(_step(config, model), state, batch)
    for leaf in jax.tree.leaves((after.params, after.average, after.batch_stats, scalars)):
        assert leaf.dtype == np.float32
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)
    loss = functools.partial(loss_fn, model=model, config=config)
    program = jax.make_jaxpr(loss)(state.params, state.batch_stats, batch)
    operands = [(eqn.primitive.name, eqn.invars[0].aval.dtype.name) for eqn in _equations(program.jaxpr) if eqn.invars]
    assert {dtype for name, dtype in operands if name == "rsqrt"} == {"float32"}  # the norms
    assert {dtype for name, dtype in operands if name in ("log1p", "logistic")} == {"float32"}  # the losses
    convolutions = [dtype for name, dtype in operands if name == "conv_general_dilated"]
    assert convolutions.count("bfloat16") > 0.8 * len(convolutions)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(inner)


@pytest.mark.slow
def test_recomputation_gives_the_same_gradients():
    results = []
    for remat in (False, True):
        config, model, batch = _setup(f"--config.model.remat={remat}")
        variables = jax.device_get(create_state(config, model, data_mesh()).variables)
        gradient = jax.jit(jax.grad(functools.partial(loss_fn, model=model, config=config), has_aux=True))
        results.append(jax.device_get(gradient(variables["params"], variables["batch_stats"], batch)))
    (plain, _), (again, _) = results
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6 * largest), again, plain)
