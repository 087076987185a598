"""bfloat16: convolutions and features; sums, norms, scores and everything that decides stays float32."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.panoptic.options import OutputSpec, TTAOptions
from pfcn_jax.steps import generate, predict_step
from pfcn_jax.types import image_geometry
from tests.support.tiny import TINY

# Sums over positions or channels, norms, probabilities, order, and what follows from them.
DECISIVE = {"reduce_sum", "cumsum", "rsqrt", "sqrt", "logistic", "exp", "div", "sort", "top_k", "argmax", "gt", "ge"}


@pytest.fixture(scope="module")
def parts():
    config = from_command_line([*TINY, "--config.model.dtype=bfloat16", "--config.model.encoder_deformable=True"])
    model = build_model(config.model, *Scenes("val").classes.counts)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    size = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    return config, model, abstract_variables(model), image, size


def operations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Every operation of a program, also inside of loops and branches."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for entry in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(entry, core.ClosedJaxpr):
                    yield from operations(entry.jaxpr)
                elif isinstance(entry, core.Jaxpr):
                    yield from operations(entry)


def test_the_heads_positions_are_float32_and_features_bfloat16(parts):
    _, model, variables, image, size = parts
    dense = jax.eval_shape(
        lambda variables, image, size: generate(variables, image, image_geometry(size), model), variables, image, size
    )
    assert {level.dtype for level in (*dense.center_logits, *dense.region_logits)} == {jnp.dtype(jnp.float32)}
    assert {level.dtype for level in (*dense.kernel_map, dense.feature)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("tta", [TTAOptions(), TTAOptions(scales=(0.5,), flip=True)])
def test_nothing_decisive_is_computed_in_bfloat16(parts, tta):
    config, model, variables, image, size = parts
    config, output = dataclasses.replace(config, tta=tta), OutputSpec((96, 96), semantic_map=True)
    step = functools.partial(predict_step, model=model, config=config, output=output)
    found = list(operations(jax.make_jaxpr(step)(variables, image, size, size).jaxpr))
    assert len(found) > 1000
    rounded = [
        str(operation)
        for operation in found
        if operation.primitive.name in DECISIVE
        and any(of.aval.dtype == jnp.bfloat16 for of in operation.invars)
        and "max_pool" not in str(operation.source_info.name_stack)  # picks one of its inputs: exact in any type
    ]
    assert not rounded
    convolutions = [o for o in found if o.primitive.name == "conv_general_dilated"]
    in_bfloat16 = [o for o in convolutions if o.invars[0].aval.dtype == jnp.bfloat16]
    assert len(in_bfloat16) > 0.5 * len(convolutions)  # all but the outputs of the position head
    result = jax.eval_shape(step, variables, image, size, size)
    assert result.panoptic.score.dtype == result.things.score.dtype == result.things.weight.dtype == jnp.float32
