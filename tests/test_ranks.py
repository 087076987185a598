"""No program of ours holds an array of rank 7 or above.

jaxlib 0.10.2 and 0.11.0 can crash or hang on a CPU in some fused reductions of such arrays (jax issue 39257).
"""

from __future__ import annotations

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from pfcn_jax.checkpoints.loading import LoadedModel
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.inputs import open_split, train_pipeline
from pfcn_jax.export.program import Shape, lower
from pfcn_jax.export.writing import flatten_shapes, prediction
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.optim.state import TrainState
from pfcn_jax.steps import train_step
from pfcn_jax.training.state import build_optimizer
from tests.support.tiny import TINY

ENHANCED = [
    "--config.model.backbone=resnet50",
    "--config.model.deformable_stages=(3,)",
    "--config.model.position_deformable=True",
    "--config.model.kernel_deformable=True",
    "--config.model.encoder_deformable=True",
]


def _largest_rank(text: str) -> int:
    """The largest rank of a tensor in the text of a StableHLO module."""
    return max(shape.count("x") for shape in re.findall(r"tensor<((?:\d+x)*)[a-z]", text))


def test_the_rank_of_a_module_is_found():
    module = jax.jit(lambda x: jnp.sum(x.reshape(1, 2, 1, 2, 1, 1, 1), axis=3)).lower(jnp.zeros((2, 2)))
    assert _largest_rank(module.as_text()) == 7


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ENHANCED], ids=["base", "enhanced"])
def test_no_program_reaches_rank_seven(flags):
    config = from_command_line([*TINY, *flags, "--config.optim.name=sgd"])  # Optax's Adam promotes dtypes
    source = open_split(config.data, "train", 0)
    model = build_model(config.model, *source.classes.counts)
    variables, optimizer = abstract_variables(model), build_optimizer(config, model)

    shape = Shape(2, (64, 64), (96, 96))
    loaded = LoadedModel(pathlib.Path("nowhere"), config, source.classes, model, variables)
    predict = lower(prediction(loaded, shape.output), flatten_shapes(variables), shape)
    assert _largest_rank(predict.mlir_module()) < 7

    params = variables["params"]
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        params,
        variables["batch_stats"],
        jax.eval_shape(optimizer.init, params),
    )
    with iter(train_pipeline(config.data, source, batch_size=2, seed=0, process=(0, 1))) as batches:
        batch = next(batches)
    step = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, config=config))
    assert _largest_rank(step.lower(state, batch).as_text()) < 7
