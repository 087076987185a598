"""Test-time augmentation as the programs use it."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pfcn_jax.data.scenes import Scenes
from pfcn_jax.engine.config import ConfigError, TTAConfig, from_command_line
from pfcn_jax.engine.state import abstract_variables, build_model
from pfcn_jax.engine.steps import predict_step
from pfcn_jax.models.panoptic_fcn import init_variables
from tests.engine.tiny import TINY


@pytest.fixture(scope="module")
def parts():
    config = from_command_line([*TINY, "--config.inference.mask_threshold=0.5", "--config.inference.min_stuff_area=16"])
    return config, build_model(config.model, Scenes("val").classes)


def test_mirrored_pictures_get_mirrored_segments(parts):
    """With the mirror image as a view, picture and mirror image are the same two views in another order."""
    config, model = parts
    variables = jax.device_get(init_variables(model, jax.random.key(0)))
    for name in ("thing_embedding", "stuff_embedding"):  # fresh ones make masks that are 1/2 everywhere
        variables["params"][name]["kernel"] = 300.0 * variables["params"][name]["kernel"]
    step = jax.jit(
        functools.partial(
            predict_step, model=model, config=config.inference, output_shape=(64, 64), tta=TTAConfig(flip=True)
        )
    )
    image = np.stack([Scenes("val", size=(64, 64))[index].image for index in range(2)])
    size = np.full((2, 2), 64, np.int32)
    size[1] = 60, 60
    image[1, 60:], image[1, :, 60:] = 0, 0
    mirrored = image.copy()
    for row, (_, width) in enumerate(size):
        mirrored[row, :, :width] = image[row, :, :width][:, ::-1]
    ours, theirs = (step(variables, pixels, size, size).panoptic for pixels in (image, mirrored))
    assert step._cache_size() == 1
    assert int(ours.valid.sum()) > 4 and len(np.unique(ours.segment_map)) > 3
    np.testing.assert_array_equal(ours.class_id, theirs.class_id)
    np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-3, atol=1e-6)
    same = [np.mean(a[:, :w] == b[:, :w][:, ::-1]) for a, b, (_, w) in zip(ours.segment_map, theirs.segment_map, size)]
    assert min(same) > 0.99


def test_lowers_for_every_platform(parts):
    config, model = parts
    tta = TTAConfig(scales=(0.5, 1.5), flip=True)
    step = functools.partial(predict_step, model=model, config=config.inference, output_shape=(96, 96), tta=tta)
    image, size = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(
        abstract_variables(model), image, size, size
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert not re.search(r"custom_call @\w*callback", exported.mlir_module())


@pytest.mark.parametrize("scales", ["(1.0,)", "(0.75, 0.1)", "(5.0,)"])
def test_a_scale_that_makes_no_sense_is_an_error(scales):
    with pytest.raises(ConfigError, match=r"config\.tta\.scales: each from 0\.25 to 4 and not 1"):
        from_command_line([*TINY, f"--config.tta.scales={scales}"])
    assert from_command_line([*TINY, "--config.tta.scales=(0.5, 1.5)"]).tta.scales == (0.5, 1.5)
