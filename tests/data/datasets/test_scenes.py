"""Drawn scenes: the same again for the same number, exact labels, everything visible."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from pfcn_jax.data.datasets import shapes
from pfcn_jax.data.datasets.scenes import MIN_VISIBLE, STUFF, THINGS, Scenes


def test_a_scene_depends_on_seed_split_and_number_alone():
    source = Scenes("train", size=(64, 96), length=10)
    forwards = [source[i] for i in range(4)]
    other = pickle.loads(pickle.dumps(Scenes("train", size=(64, 96), length=10_000_000)))
    for index in (3, 1, 0, 2):
        again = other[index]
        np.testing.assert_array_equal(again.image, forwards[index].image)
        np.testing.assert_array_equal(again.segment_map, forwards[index].segment_map)
    for changed in (Scenes("val", size=(64, 96)), Scenes("train", size=(64, 96), seed=1)):
        assert (changed[0].image != forwards[0].image).any()
    assert (forwards[0].image != forwards[1].image).any()


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (96, 200)])
def test_scenes_are_valid_examples(size):
    source = Scenes("train", size=size, length=12)
    assert source.sizes().tolist() == [list(size)] * 12
    seen = set()
    for index in range(12):
        example = source[index]
        assert example.image.shape == (*size, 3) and example.image.dtype == np.uint8
        assert example.segment_map.shape == size and example.segment_map.dtype == np.int32
        area = np.bincount(example.segment_map.reshape(-1), minlength=len(example.class_id) + 1)
        assert len(area) == len(example.class_id) + 1 and (area[1:] >= MIN_VISIBLE).all()
        assert area[0] < 0.05 * area.sum()
        stuff = example.class_id[example.class_id >= len(THINGS)]
        assert len(set(stuff.tolist())) == len(stuff)  # one segment a stuff class
        assert not example.is_crowd.any()
        seen |= set(example.class_id.tolist())
    assert seen == set(range(len(THINGS) + len(STUFF)))


@pytest.mark.parametrize("kind", range(len(THINGS)))
def test_labels_lie_on_what_is_painted(kind):
    """A thing painted on green and reduced covers the pixels of its label, but for the border's own pixels."""
    rng = np.random.default_rng(kind)
    for radius in (6.0, 14.0, 25.0):
        thing = shapes.make_thing(rng, kind, (31.3, 30.8), radius, floating=False)
        label = np.zeros((64, 64), np.int32)
        shapes.fill(label, thing, 1)
        ground = np.array([0.0, 1000.0, 0.0], np.float32)  # no surface is as green as that
        large = np.tile(ground, (128, 128, 1))
        shapes.draw(large, thing, 0.5, 2)
        painted = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)[:, :, 1] < 620.0
        near_border = cv2.dilate(label.astype(np.uint8), np.ones((3, 3))) != cv2.erode(
            label.astype(np.uint8), np.ones((3, 3))
        )
        assert not ((painted != label.astype(bool)) & ~near_border).any()
        for axis in (0, 1):
            centers = [np.nonzero(mask)[axis].mean() for mask in (painted, label)]
            assert abs(centers[0] - centers[1]) < 0.3
        assert abs(int(painted.sum()) - int(label.sum())) < 0.2 * near_border.sum()


def test_number_of_things():
    counts = [int((Scenes("x", things=(2, 7))[i].class_id < len(THINGS)).sum()) for i in range(60)]
    assert max(counts) == 7 and np.mean(counts) > 3.5
    empty = Scenes("x", things=(0, 0))[0]
    assert (empty.class_id >= len(THINGS)).all() and len(empty.class_id) >= 2


def test_unusable_options_are_refused():
    for options, message in (
        ({"size": (16, 64)}, "both sides must be at least 32"),
        ({"things": (3, 2)}, "fewest <= most"),
        ({"length": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Scenes("train", **options)
    with pytest.raises(IndexError):
        Scenes("train", length=3)[3]
