"""The canonical model's two programs lower for every platform, from shapes alone: no parameter is made."""

from __future__ import annotations

import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax import export

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.export.program import PLATFORMS, Shape, foreign_calls, lower
from pfcn_jax.export.writing import FIELDS, flatten_shapes, prediction
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.optim.state import TrainState
from pfcn_jax.steps import train_step
from pfcn_jax.studies.abstract import abstract_batch
from pfcn_jax.training.state import build_optimizer

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def parts():
    config = from_command_line([f"--config={ROOT / 'configs' / 'panoptic_fcn_r50.py'}"])
    return config, build_model(config.model, *coco_classes().counts)


def test_the_prediction_lowers(parts):
    config, model = parts
    variables = abstract_variables(model)
    loaded = LoadedModel(pathlib.Path("nowhere"), config, coco_classes(), model, variables)
    shape = Shape(2, (800, 1344), (768, 768))
    exported = lower(prediction(loaded, shape.output), flatten_shapes(variables), shape)
    assert exported.platforms == PLATFORMS and foreign_calls(exported) == []
    found = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert set(found) == set(FIELDS) and found["segment_map"].shape == (2, 768, 768)
    assert "tensor<?" not in exported.mlir_module()


def test_the_training_step_lowers(parts):
    config, model = parts
    optimizer = build_optimizer(config, model)

    def create() -> TrainState:
        variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_variables(model))
        params, stats = variables["params"], variables["batch_stats"]
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))

    batch = abstract_batch(2, (800, 1344), config.data.max_segments)
    step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, config=config))
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        exported = export.export(step, platforms=PLATFORMS)(jax.eval_shape(create), batch)
    assert exported.platforms == PLATFORMS and foreign_calls(exported) == []
    assert "tensor<?" not in exported.mlir_module()
