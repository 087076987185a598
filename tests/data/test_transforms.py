"""Resize, flip, crop: exact against Pillow, and image, map and boxes stay together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data import transforms
from pfcn_jax.data.augment import LargeScaleJitter, ResizeShortSide
from pfcn_jax.data.canvas import copy_into, pad_into
from pfcn_jax.data.example import Example
from pfcn_jax.data.segments import find_runs, tight_boxes
from tests.data.fixtures import tiny_examples


@pytest.fixture(scope="module")
def example() -> Example:
    return tiny_examples(3)[0]


@pytest.fixture(scope="module")
def sample(example) -> transforms.Sample:
    return transforms.resize(example, example.size)


def random_crop(example, size, rng, is_thing=None):
    window = transforms.random_window(example, example.size, size, rng, is_thing=is_thing)
    return transforms.resize_and_crop(example, example.size, window)


def slow_crop(sample: transforms.Sample, window: transforms.Window) -> transforms.Sample:
    segment_map = sample.segment_map[window.slices]
    box = tight_boxes(find_runs(segment_map), len(sample.class_id))
    image = sample.image[window.slices]
    return dataclasses.replace(sample, image=image, segment_map=segment_map, box=box, complete=False)


def measured_boxes(sample: transforms.Sample) -> np.ndarray:
    return tight_boxes(find_runs(sample.segment_map), len(sample.class_id))


def test_a_sample_begins_with_tight_boxes(sample):
    for row, (x0, y0, x1, y1) in enumerate(sample.box.astype(int)):
        mask = sample.segment_map == row + 1
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
    assert sample.original_size == sample.size == (96, 128)


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((300, 640), 800, 1333, (625, 1333)),  # the long side decides
        ((640, 200), 800, 1333, (1333, 417)),  # 416.56 is rounded
        ((500, 500), 800, 1333, (800, 800)),
        ((427, 640), 500, 1333, (500, 749)),  # recorded from the original
        ((427, 640), 100, 140, (93, 140)),
        ((360, 640), 100, 140, (79, 140)),  # 78.75
        ((2, 5), 1, 100, (1, 3)),  # 2.5: half up
        ((1, 3000), 8, 20, (1, 20)),  # never 0
    ],
)
def test_size_rule(size, short, longest, expected):
    assert transforms.resized_size(size, short, longest) == expected


def slow_bilinear(pixels: np.ndarray, length: int) -> np.ndarray:
    """Antialiased bilinear resize of uint8 along axis 0 as Pillow defines it: weights of 22 bits, rounded half up."""
    scale = len(pixels) / length
    reach = max(scale, 1.0)
    rows = []
    for index in range(length):
        center = (index + 0.5) * scale
        first, last = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), len(pixels))
        weight = np.maximum(1 - np.abs((np.arange(first, last) - center + 0.5) / reach), 0)
        weight = np.floor(weight / weight.sum() * (1 << 22) + 0.5).astype(np.int64)
        total = np.tensordot(weight, pixels[first:last].astype(np.int64), axes=1) + (1 << 21)
        rows.append(np.clip(total >> 22, 0, 255))
    return np.stack(rows).astype(np.uint8)


def test_image_and_labels_are_resized_as_the_original_does(example, sample):
    """Columns, rounded to 8 bits, then rows: what every Pillow did before 13, which turns some sizes around."""
    drawn = Image.fromarray(sample.image)
    labels = Image.fromarray(sample.segment_map.astype(np.uint8))
    for size in ((96, 128), (192, 256), (48, 64), (31, 200), (200, 31), (144, 192), (97, 129), (1, 1)):
        resized = transforms.resize(example, size)
        width_height = (size[1], size[0])
        wide = slow_bilinear(sample.image.swapaxes(0, 1), size[1]).swapaxes(0, 1)
        np.testing.assert_array_equal(resized.image, slow_bilinear(wide, size[0]))
        pillow = np.asarray(drawn.resize(width_height, Image.Resampling.BILINEAR))
        assert np.abs(resized.image.astype(int) - pillow).max() <= 1
        np.testing.assert_array_equal(
            resized.segment_map, np.array(labels.resize(width_height, Image.Resampling.NEAREST))
        )
        assert resized.size == size and resized.original_size == (96, 128)


def test_nearest_index_equals_pillow_for_many_lengths():
    rng = np.random.default_rng(0)
    for length in (1, 2, 3, 7, 100, 427, 480, 640):
        line = np.arange(length, dtype=np.int32)[None, :]
        for target in {1, 2, length, length * 3 // 2 + 1, 2 * length, 720, 800, *rng.integers(1, 1400, 40).tolist()}:
            pillow = np.array(Image.fromarray(line).resize((target, 1), Image.Resampling.NEAREST))[0]
            np.testing.assert_array_equal(transforms.nearest_index(length, target), pillow)


def test_opencv_enlarges_to_one_grey_level_and_leaves_shrinking_to_pillow(sample):
    for size in ((150, 200), (96, 300), (143, 191)):
        exact = transforms.resize_image(sample.image, size)
        quick = transforms.resize_image(sample.image, size, method="opencv")
        assert np.abs(exact.astype(int) - quick).max() == 1
    for size in ((50, 64), (200, 100)):
        np.testing.assert_array_equal(
            transforms.resize_image(sample.image, size), transforms.resize_image(sample.image, size, method="opencv")
        )
    with pytest.raises(ValueError, match=r"'cubic'.*pillow, opencv"):
        transforms.resize_image(sample.image, (5, 5), method="cubic")


def test_boxes_are_scaled_with_the_image(example, sample):
    resized = transforms.resize(example, (192, 512))
    np.testing.assert_allclose(resized.box, sample.box * np.array([[4.0, 2.0, 4.0, 2.0]]), rtol=1e-15)
    np.testing.assert_array_equal(resized.box, measured_boxes(resized))  # whole factors: both ways agree


def test_flip_twice_is_nothing_and_once_a_mirror(sample):
    once = transforms.flip(sample)
    np.testing.assert_array_equal(once.image, sample.image[:, ::-1])
    np.testing.assert_array_equal(once.segment_map, sample.segment_map[:, ::-1])
    np.testing.assert_array_equal(once.box, measured_boxes(once))
    twice = transforms.flip(once)
    for field in ("image", "segment_map", "box"):
        np.testing.assert_array_equal(getattr(twice, field), getattr(sample, field))


def test_random_crop_holds_the_center_of_an_instance(example, sample):
    is_thing = np.arange(10) < 5
    things = np.flatnonzero(is_thing[sample.class_id] & ~sample.is_crowd)
    assert things.size and sample.is_crowd.any()
    corners = set()
    for seed in range(60):
        window = random_crop(example, (24, 32), np.random.default_rng(seed), is_thing=is_thing)
        assert window.size == (24, 32)
        matches = [
            (top, left)
            for top in range(96 - 23)
            for left in range(128 - 31)
            if np.array_equal(sample.image[top : top + 24, left : left + 32], window.image)
        ]
        assert len(matches) == 1  # grain makes each window unique
        top, left = matches[0]
        centers = [(sample.box[i, 1::2].mean(), sample.box[i, 0::2].mean()) for i in things]
        assert any(top <= y < top + 24 and left <= x < left + 32 for y, x in centers)
        corners.add((top, left))
    assert len(corners) > 50


def test_random_crop_without_instances_and_of_small_images(example):
    whole = random_crop(example, (500, 500), np.random.default_rng(0), is_thing=np.ones(10, bool))
    assert whole.size == (96, 128)
    nothing = dataclasses.replace(
        example, runs=find_runs(example.segment_map * 0), class_id=example.class_id[:0], is_crowd=example.is_crowd[:0],
    )  # fmt: skip
    window = random_crop(nothing, (10, 12), np.random.default_rng(0), is_thing=np.ones(10, bool))
    assert window.size == (10, 12) and window.box.shape == (0, 4)


def test_limit_segments_drops_the_vanished_then_the_smallest(sample):
    count = len(sample.class_id)
    area = np.bincount(sample.segment_map.reshape(-1), minlength=count + 1)[1:]
    same, dropped = transforms.limit_segments(sample, count)
    assert dropped == 0 and same is sample
    limited, dropped = transforms.limit_segments(sample, 3)
    assert dropped == count - 3
    largest = np.sort(np.argsort(-area, kind="stable")[:3])
    np.testing.assert_array_equal(limited.class_id, sample.class_id[largest])
    np.testing.assert_array_equal(limited.box, sample.box[largest])
    for new, old in enumerate(largest):
        np.testing.assert_array_equal(limited.segment_map == new + 1, sample.segment_map == old + 1)
    assert (limited.segment_map == 0).sum() == (sample.segment_map == 0).sum() + area.sum() - area[largest].sum()
    # A row without pixels goes without being counted.
    without = np.where(sample.segment_map == 2, 0, sample.segment_map)
    gone = dataclasses.replace(sample, segment_map=without, complete=False)
    kept, dropped = transforms.limit_segments(gone, count)
    assert dropped == 0 and len(kept.class_id) == count - 1
    np.testing.assert_array_equal(kept.class_id, np.delete(sample.class_id, 1))
    np.testing.assert_array_equal(kept.segment_map == 2, sample.segment_map == 3)


def test_complete_is_never_claimed_wrongly(example, sample):
    for size in ((96, 128), (97, 128), (300, 200), (95, 200), (12, 16), (3, 2), (96, 127)):
        resized = transforms.resize(example, size)
        present = np.isin(np.arange(len(sample.class_id)) + 1, resized.segment_map)
        assert resized.complete == (size[0] >= 96 and size[1] >= 128)
        assert present.all() or not resized.complete
        limited, dropped = transforms.limit_segments(transforms.flip(resized), 100)
        assert limited.complete and dropped == 0 and len(limited.class_id) == present.sum()
        np.testing.assert_array_equal(limited.class_id, sample.class_id[present])
    tiny = transforms.limit_segments(transforms.resize(example, (3, 2)), 100)[0]
    assert 0 < len(tiny.class_id) < len(sample.class_id)
    assert not transforms.resize_and_crop(example, (96, 128), transforms.Window(0, 0, 50, 50)).complete


def test_copy_into_equals_an_assignment(sample):
    for values in (sample.image, sample.segment_map, sample.image[:, ::-1], sample.segment_map[:, ::-1]):
        target = np.zeros((100, 140, *values.shape[2:]), values.dtype)
        copy_into(target[:96, :128], values)
        np.testing.assert_array_equal(target[:96, :128], values)
        assert not target[96:].any() and not target[:, 128:].any()
    wide = np.zeros((96, 128), np.int64)
    copy_into(wide, sample.segment_map[:, ::-1])
    np.testing.assert_array_equal(wide, sample.segment_map[:, ::-1])


def test_copy_into_the_same_memory():
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 2), (7, 33), (5, 64), (4, 101)):
        for shape, dtype in (((height + 2, width + 3, 3), np.uint8), ((height + 2, width + 3), np.int32)):
            whole = rng.integers(0, 200, shape).astype(dtype)
            before, target = whole.copy(), whole[:height, :width]
            copy_into(target, target)
            np.testing.assert_array_equal(whole, before)
            copy_into(target, target[:, ::-1])
            np.testing.assert_array_equal(target, before[:height, :width][:, ::-1])
            np.testing.assert_array_equal(whole[height:], before[height:])
            np.testing.assert_array_equal(whole[:, width:], before[:, width:])


@pytest.mark.parametrize("method", transforms.RESIZE_METHODS)
def test_a_canvas_takes_the_image(example, method):
    for size in ((96, 128), (150, 200), (60, 80), (300, 400)):
        canvas = np.full((200, 260, 3), 9, np.uint8)
        ours = transforms.flip(transforms.resize(example, size, method=method, canvas=canvas))
        expected = transforms.flip(transforms.resize(example, size, method=method))
        np.testing.assert_array_equal(ours.image, expected.image)
        np.testing.assert_array_equal(ours.segment_map, expected.segment_map)
        assert np.shares_memory(ours.image, canvas) == (method == "opencv" and size == (150, 200))
        if size != (300, 400):
            pad_into(canvas, ours.image)
            np.testing.assert_array_equal(canvas[: size[0], : size[1]], expected.image)
            assert not canvas[size[0] :].any() and not canvas[:, size[1] :].any()


def test_a_window_of_a_resize_is_the_crop_of_it(example):
    rng = np.random.default_rng(1)
    for size in ((96, 128), (150, 200), (700, 901), (60, 200), (50, 40)):
        for _ in range(5):
            window = transforms.random_window(example, size, (33, 47), rng)
            assert (window.height, window.width) == (min(33, size[0]), min(47, size[1]))
            whole = slow_crop(transforms.resize(example, size), window)
            ours = transforms.resize_and_crop(example, size, window)
            for field in ("image", "segment_map", "box", "class_id", "complete"):
                np.testing.assert_array_equal(getattr(ours, field), getattr(whole, field))
            quick = transforms.resize_and_crop(example, size, window, method="opencv")
            np.testing.assert_array_equal(quick.segment_map, whole.segment_map)
            assert np.abs(quick.image.astype(int) - whole.image).max() <= 1
    # A window on the far edge, where rounding could reach over it.
    edge = transforms.Window(700 - 33, 901 - 47, 33, 47)
    quick = transforms.resize_and_crop(example, (700, 901), edge, method="opencv")
    whole = transforms.resize(example, (700, 901)).image[-33:, -47:]
    assert np.abs(quick.image.astype(int) - whole).max() <= 1


def test_recipe_draws_all_short_sides_and_both_directions(example):
    recipe = ResizeShortSide((48, 72, 96), 120, flip=0.5)
    seen = set()
    for seed in range(40):
        result = recipe(example, np.random.default_rng(seed))
        limit = recipe.largest_size(example.size)
        assert result.size[0] <= limit[0] and result.size[1] <= limit[1]
        exact = transforms.resize(example, result.size)
        flipped = not np.array_equal(result.image, exact.image)
        np.testing.assert_array_equal(result.image, transforms.flip(exact).image if flipped else exact.image)
        seen.add((result.size, flipped))
    assert seen == {(size, flipped) for size in ((48, 64), (72, 96), (90, 120)) for flipped in (False, True)}


def test_recipe_with_a_crop_stays_within_it(example):
    recipe = ResizeShortSide((128, 192), 400, crop_size=(64, 80), crop_classes=tuple(i < 5 for i in range(10)))
    assert recipe.largest_size((96, 128)) == (64, 80)
    assert recipe(example, np.random.default_rng(0)).size == (64, 80)


def test_large_scale_jitter_fits_its_canvas_at_both_ends(example):
    recipe = LargeScaleJitter((64, 64), (0.25, 2.0))
    assert recipe.largest_size((96, 128)) == (64, 64)
    sizes = [recipe(example, np.random.default_rng(seed)).size for seed in range(30)]
    assert min(sizes)[0] < 24 and max(sizes)[0] == 64 and max(size[1] for size in sizes) == 64


def test_large_scale_jitter_is_a_resize_and_a_window(example, sample):
    recipe = LargeScaleJitter((64, 64), (0.5, 3.0), crop_classes=tuple(i < 5 for i in range(10)))
    assert recipe.resized_range((96, 128)) == ((24, 32), (144, 192))
    cut = 0
    for seed in range(40):
        result = recipe(example, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        size, flipped = recipe.resized_size(sample.size, rng.uniform(0.5, 3.0)), rng.random() < 0.5
        whole = transforms.resize(example, size)
        assert result.size == (min(size[0], 64), min(size[1], 64))
        image = result.image[:, ::-1] if flipped else result.image
        places = np.lib.stride_tricks.sliding_window_view(whole.image[..., 0], image.shape[:2])
        assert (places == image[..., 0]).all((2, 3)).any()
        if size[0] > 64 or size[1] > 64:
            cut += 1
            kept = transforms.limit_segments(result, 100)[0]
            np.testing.assert_array_equal(kept.box, measured_boxes(kept))
            assert (kept.class_id < 5).any()  # a thing's box center lies inside; scenes' things are convex
    assert cut > 10


def test_unusable_recipes_are_refused():
    with pytest.raises(ValueError, match="flip is a probability"):
        ResizeShortSide((8,), 8, flip=2.0)
    with pytest.raises(ValueError, match="all must be >= 1"):
        ResizeShortSide((), 8)
    with pytest.raises(ValueError, match="scale range"):
        LargeScaleJitter((8, 8), (2.0, 1.0))
    with pytest.raises(ValueError, match="flip is a probability"):
        LargeScaleJitter((8, 8), flip=-0.1)
