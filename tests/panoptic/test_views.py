"""Views of an image: what they show, where it lies, and what they add to a prediction."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pfcn_jax.panoptic.kernels import center_scores, keep_peaks
from pfcn_jax.panoptic.views import View, align_feature, look_up, make_view
from pfcn_jax.types import STRIDES, DenseOutputs
from tests.panoptic.test_predict import EVERYTHING, SIZES, arrays, dense, predict


def draw(height: int, width: int, canvas: tuple[int, int]) -> np.ndarray:
    image = np.zeros((*canvas, 3), np.uint8)
    image[:height, :width] = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return image


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5])
def test_a_scaled_view_is_pillows_resize(scale: float) -> None:
    image = draw(50, 61, (64, 96))
    made, view = jax.jit(functools.partial(make_view, scale=scale, mirrored=False))(image, *arrays((50, 61)))
    height, width = (int(side * scale + 0.5) for side in (50, 61))
    assert view.size.tolist() == [height, width]
    assert made.shape[0] % 32 == made.shape[1] % 32 == 0 and (np.asarray(view.padded_size) <= made.shape[:2]).all()
    expected = np.asarray(Image.fromarray(image[:50, :61]).resize((width, height), Image.Resampling.BILINEAR))
    difference = np.abs(np.asarray(made)[:height, :width].astype(int) - expected.astype(int))
    assert difference.max() <= 1  # Pillow rounds between rows and columns
    assert not np.asarray(made)[height:].any() and not np.asarray(made)[:, width:].any()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_mirrored_view_starts_at_the_left(scale: float) -> None:
    image, size = draw(50, 61, (64, 96)), arrays((50, 61))[0]
    plain, view = make_view(jnp.asarray(image), size, scale=scale, mirrored=False)
    made, mirrored = make_view(jnp.asarray(image), size, scale=scale, mirrored=True)
    height, width = view.size.tolist()
    np.testing.assert_array_equal(np.asarray(made)[:height, :width], np.asarray(plain)[:height, :width][:, ::-1])
    assert not np.asarray(made)[:, width:].any() and mirrored.mirrored and not view.mirrored


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("view_size", [(96, 160), (50, 81), (150, 240)])
def test_features_of_a_view_come_back_to_the_images_grid(view_size: tuple[int, int], mirrored: bool) -> None:
    """A feature that is the position in the image is the same whichever view it comes from."""
    size, extent, shape = (96, 160), (96, 160), (24, 40)

    def position(size: tuple[int, int], shape: tuple[int, int], mirrored: bool) -> np.ndarray:
        y, x = ((np.arange(n) + 0.5) * 4 / side for n, side in zip(shape, size))
        y, x = np.meshgrid(y, 1.0 - x if mirrored else x, indexing="ij")
        return np.stack([y, x], axis=-1).astype(np.float32)

    view_extent = tuple(-(-side // 32) * 32 for side in view_size)
    cells = (view_extent[0] // 4, view_extent[1] // 4)
    feature = np.pad(position(view_size, cells, mirrored), ((0, 3), (0, 5), (0, 0)), constant_values=99.0)
    view = View(*arrays(view_size, view_extent), mirrored=mirrored)
    run = jax.jit(functools.partial(align_feature, shape=(26, 44)))
    ours = np.asarray(run(feature, view, *arrays(size, extent)))
    expected = position(size, shape, False)
    margin = 3  # the ends are repeated
    inner = (slice(margin, shape[0] - margin), slice(margin, shape[1] - margin))
    np.testing.assert_allclose(ours[inner], expected[inner], atol=1e-5)
    assert not ours[shape[0] :].any() and not ours[:, shape[1] :].any()


def test_look_up_takes_the_peak_beside_the_point_and_else_the_point() -> None:
    extent = arrays((128, 128))[0]
    logits = [np.full((128 // s, 128 // s, 2), -6.0, np.float32) for s in STRIDES]
    logits[0][5, 6, 1] = -1.0  # p3, beside (5, 7)
    logits[1][2, 3, 1] = 3.0  # p4, the same place, much higher
    logits[0][10, 2, 1] = 2.0
    logits[1][5, 1, 1] = 3.0  # a little higher: not enough on another level
    logits[4][0, 0, 1] = 4.0  # p7, too far away from p3
    logits[0][12, 11:13, 0] = 1.0, 2.0  # a slope and its peak
    kernels = [np.random.default_rng(s).normal(size=(128 // s, 128 // s, 3)).astype(np.float32) for s in STRIDES]
    outputs = DenseOutputs(tuple(map(jnp.asarray, logits)), (), tuple(map(jnp.asarray, kernels)), jnp.zeros((1, 1, 1)))
    scores = [center_scores(level, extent, stride=s, window=3) for level, s in zip(outputs.center_logits, STRIDES)]
    peaks = [keep_peaks(level) for level in scores]
    point = jnp.asarray([[44.0, 60.0], [44.0, 60.0], [100.0, 84.0], [-5.0, 300.0], [84.0, 20.0]])
    class_id, home = jnp.asarray([1, 0, 0, 1, 1]), jnp.zeros(5, jnp.int32)
    score, kernel = look_up(outputs, scores, peaks, View(extent, extent), point, class_id, home)
    np.testing.assert_allclose(score[0], peaks[1][2, 3, 1])
    np.testing.assert_array_equal(kernel[0], kernels[1][2, 3])
    assert float(score[1]) < 0.05  # nothing of this class: what the point says, little
    np.testing.assert_allclose(score[2], scores[0][12, 10, 0])  # two cells beside the peak: the slope itself
    np.testing.assert_array_equal(kernel[2], kernels[0][12, 10])
    assert np.isfinite(score[3])  # a point outside is clamped
    np.testing.assert_allclose(score[4], peaks[0][10, 2, 1])
    np.testing.assert_array_equal(kernel[4], kernels[0][10, 2])


def test_look_up_finds_the_cell_that_targets_put_a_point_in() -> None:
    """On p6 and p7 the ratio of the sizes counts, not the stride: 160 x 224 has 3 x 4 and 2 x 2 cells."""
    extent = arrays((160, 224))[0]
    shapes = [(-(-160 // s), -(-224 // s)) for s in STRIDES]
    logits = tuple(jnp.full((*shape, 1), -6.0) for shape in shapes)
    kernels = [np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32) for shape in shapes]
    outputs = DenseOutputs(logits, (), tuple(map(jnp.asarray, kernels)), jnp.zeros((1, 1, 1)))
    scores = [center_scores(level, extent, stride=s, window=3) for level, s in zip(logits, STRIDES)]
    point = np.random.default_rng(1).uniform((0, 0), (160, 224), (50, 2)).astype(np.float32)
    for level, shape in enumerate(shapes):
        home = jnp.full(50, level, jnp.int32)
        nothing = [jnp.zeros_like(values) for values in scores]
        _, kernel = look_up(
            outputs, scores, nothing, View(extent, extent), jnp.asarray(point), jnp.zeros(50, jnp.int32), home
        )
        row, column = (
            np.floor(point[:, axis] * np.float32(shape[axis] / (160, 224)[axis])).astype(int) for axis in (0, 1)
        )
        np.testing.assert_array_equal(kernel, kernels[level][row, column])


def mirror(outputs: DenseOutputs) -> DenseOutputs:
    return jax.tree.map(lambda values: values[:, ::-1], outputs)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_view_that_says_the_same_changes_nothing(mirrored: bool) -> None:
    """The image again, or its mirror image: every object is found again, in the right place, and only once."""
    outputs = dense((64, 64), (64, 64))
    size, extent = arrays((64, 64), (64, 64))
    original = arrays((70, 81))[0]
    alone = jax.jit(functools.partial(predict, output=EVERYTHING))(outputs, size, extent, original)
    other = (mirror(outputs) if mirrored else outputs, View(size, extent, mirrored=mirrored))
    both = jax.jit(functools.partial(predict, output=EVERYTHING))(outputs, size, extent, original, views=(other,))
    assert int(alone.panoptic.is_thing.sum()) > 1
    np.testing.assert_array_equal(both.panoptic.class_id, alone.panoptic.class_id)
    np.testing.assert_array_equal(both.panoptic.segment_map, alone.panoptic.segment_map)
    np.testing.assert_array_equal(both.semantic_map, alone.semantic_map)
    np.testing.assert_allclose(both.things.score, alone.things.score, rtol=1e-4)


@pytest.mark.slow
def test_views_that_see_nothing_halve_the_scores() -> None:
    size, extent, original = SIZES
    outputs = dense((64, 64), (64, 64), center_bias=1.0)
    blind = outputs.replace(center_logits=tuple(level - 30.0 for level in outputs.center_logits))
    run = jax.jit(functools.partial(predict, center_threshold=0.1))
    alone = run(outputs, size, extent, original)
    both = run(outputs, size, extent, original, views=((blind, View(size, extent)),))
    best = int(np.argmax(np.asarray(alone.things.score)))
    np.testing.assert_allclose(both.things.score[best], alone.things.score[best] / 2.0, rtol=0.1)
