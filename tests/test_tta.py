"""Test-time augmentation as the programs use it."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.decode import decode_image
from pfcn_jax.data.transforms import resize_image, resized_size
from pfcn_jax.errors import ConfigError
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.models.panoptic_fcn import init_variables
from pfcn_jax.panoptic.options import OutputSpec, PredictOptions, TTAOptions
from pfcn_jax.steps import predict_step
from pfcn_jax.studies.parity.network import load_model
from pfcn_jax.types import PanopticPrediction
from tests.support.tiny import TINY


@pytest.fixture(scope="module")
def parts():
    config = from_command_line([*TINY, "--config.inference.mask_threshold=0.5", "--config.inference.min_stuff_area=16"])
    return config, build_model(config.model, *Scenes("val").classes.counts)


@pytest.mark.slow
def test_mirrored_images_get_mirrored_segments(parts):
    """With the mirror image as a view, image and mirror image are the same two views in another order."""
    config, model = parts
    variables = jax.device_get(init_variables(model, jax.random.key(0)))
    for name in ("thing_embedding", "stuff_embedding"):  # fresh ones make masks that are 1/2 everywhere
        variables["params"][name]["kernel"] = 300.0 * variables["params"][name]["kernel"]
    step = jax.jit(
        functools.partial(
            predict_step,
            model=model,
            config=dataclasses.replace(config, tta=TTAOptions(flip=True)),
            output=OutputSpec((64, 64)),
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


@pytest.mark.slow
def test_a_mirrored_photo_gets_the_mirrored_segments(reference_dir, image_data_dir):
    """Real photos, the recorded weights, two scales: the views are the same in another order."""
    model, variables = load_model(reference_dir, "R50-1x")
    paths = sorted((image_data_dir / "two_photos" / "images").glob("*.jpg"))
    photos = [decode_image(path.read_bytes(), str(path)) for path in paths]
    photos = [resize_image(photo, resized_size(photo.shape[:2], 96, 160)) for photo in photos]
    size = np.array([photo.shape[:2] for photo in photos], np.int32)
    image = np.zeros((2, 2, 96, 160, 3), np.uint8)  # as it is and mirrored, photo
    for row, photo in enumerate(photos):
        image[0, row, : photo.shape[0], : photo.shape[1]] = photo
        image[1, row, : photo.shape[0], : photo.shape[1]] = photo[:, ::-1]
    tta = TTAOptions(scales=(0.75,), flip=True)
    options = PredictOptions(center_threshold=0.2, stuff_threshold=0.1, min_stuff_area=64)
    output = OutputSpec((96, 160))
    config = Config(inference=options, tta=tta)
    step = jax.jit(functools.partial(predict_step, model=model, config=config, output=output))
    ours, theirs = (jax.device_get(step(variables, pixels, size, size).panoptic) for pixels in image)
    config = Config(inference=options)
    plain = jax.jit(functools.partial(predict_step, model=model, config=config, output=output))
    alone = jax.device_get(plain(variables, image[0], size, size).panoptic)
    assert int(ours.valid.sum()) > 4 and (ours.segment_map != alone.segment_map).mean() > 0.01
    for row, (height, width) in enumerate(size):
        one, other = (np.sort(found.class_id[row][found.valid[row]]) for found in (ours, theirs))
        np.testing.assert_array_equal(one, other)
        one, other = (_classes_of(found, row)[:height, :width] for found in (ours, theirs))
        assert (one == other[:, ::-1]).mean() > 0.99


def _classes_of(panoptic: PanopticPrediction, row: int) -> np.ndarray:
    """The class of every pixel of an image, -1 where it is void."""
    ids = panoptic.segment_map[row]
    return np.where(ids > 0, panoptic.class_id[row][np.maximum(ids, 1) - 1], -1)


@pytest.mark.slow
def test_lowers_for_every_platform(parts):
    config, model = parts
    config = dataclasses.replace(config, tta=TTAOptions(scales=(0.5, 1.5), flip=True))
    step = functools.partial(predict_step, model=model, config=config, output=OutputSpec((96, 96)))
    image, size = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(
        abstract_variables(model), image, size, size
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert not re.search(r"custom_call @\w*callback", exported.mlir_module())


@pytest.mark.parametrize("scales", ["(1.0,)", "(0.75, 0.1)", "(5.0,)"])
def test_a_scale_that_makes_no_sense_is_an_error(scales):
    with pytest.raises(ConfigError, match=r"config\.tta\.scales"):
        from_command_line([*TINY, f"--config.tta.scales={scales}"])
    assert from_command_line([*TINY, "--config.tta.scales=(0.5, 1.5)"]).tta.scales == (0.5, 1.5)
