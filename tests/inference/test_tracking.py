"""The tracker against a slow, obvious one, and what it is for: occlusion, crossing, ids that last."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.inference.result import make_result
from pfcn_jax.inference.tracking import Tracker, TrackOptions, segment_kernels
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.types import Kernels, PanopticPrediction

CLASSES = ClassTable(names=("cat", "dog", "sky"), category_ids=(5, 7, 9), is_thing=(True, True, False))
Segment = tuple[int, slice, np.ndarray]  # class, columns of a one-row image, kernel


def kernel(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


A, B = kernel(1, 0, 0), kernel(0, 1, 0)


def see(tracker: Tracker, *segments: Segment, width: int = 12) -> list[int]:
    segment_map = np.zeros((1, width), np.int32)
    for row, (_, columns, _) in enumerate(segments):
        segment_map[0, columns] = row + 1
    class_id = np.array([segment[0] for segment in segments], np.int64)
    kernels = np.array([segment[2] for segment in segments]).reshape(len(segments), 3)
    return tracker.update(segment_map, class_id, np.array(CLASSES.is_thing)[class_id], kernels).tolist()


class SlowTracker:
    """The rules with whole masks, and by trying every assignment."""

    def __init__(self, options: TrackOptions):
        self.options, self.known, self.next_id, self.frame = options, {}, len(CLASSES) + 1, -1

    def similar(self, one, other) -> float:
        (class_one, mask_one, kernel_one), (class_other, mask_other, kernel_other) = one, other
        iou = (mask_one & mask_other).sum() / (mask_one | mask_other).sum()
        cosine = kernel_one @ kernel_other / (np.linalg.norm(kernel_one) * np.linalg.norm(kernel_other))
        min_iou, min_similarity = self.options.min_iou, self.options.min_similarity
        near = min_iou is not None and iou > min_iou
        alike = min_similarity is not None and cosine > min_similarity
        if class_one != class_other or not (near or alike):
            return 0.0
        of_kernels = (cosine - min_similarity) / (1 - min_similarity) if alike else 0.0
        return of_kernels + (iou if min_iou is not None else 0.0)

    def update(self, segment_map, class_id, is_thing, kernels) -> list[int]:
        self.frame += 1
        self.known = {i: k for i, k in self.known.items() if self.frame - k[0] - 1 <= self.options.memory}
        things = [r for r in range(len(class_id)) if is_thing[r]]
        seen = {r: (class_id[r], segment_map == r + 1, kernels[r].astype(float)) for r in things}
        best, chosen = -1.0, {}
        for tracks in itertools.permutations([*self.known, *[None] * len(things)], len(things)):
            pairs = {r: t for r, t in zip(things, tracks) if t is not None}
            values = [self.similar(seen[r], self.known[t][1]) for r, t in pairs.items()]
            if all(values) and sum(values) > best + 1e-12:
                best, chosen = sum(values), pairs
        ids = [c + 1 for c in class_id]
        for r in things:
            if r not in chosen:
                chosen[r], self.next_id = self.next_id, self.next_id + 1
            ids[r] = chosen[r]
            self.known[ids[r]] = (self.frame, seen[r])
        return ids


@pytest.mark.parametrize("options", [TrackOptions(0.2, 0.8, 1), TrackOptions(0.3, None, 2), TrackOptions(None, 0.7, 0)])
def test_random_films_equal_the_slow_tracker(options):
    rng = np.random.default_rng(5)
    kept = 0
    for _ in range(12):
        tracker, slow = Tracker(len(CLASSES), options), SlowTracker(options)
        grid = rng.integers(0, 4, (6, 6))
        base = rng.normal(size=(4, 5))
        for frame in range(5):
            shifted = np.roll(grid, int(rng.integers(0, 3)), axis=1)
            rows = [i for i in rng.permutation(4)[: rng.integers(0, 4)] if (shifted == i).any()]
            segment_map = np.zeros(grid.shape, np.int32)
            for row, i in enumerate(rows):
                segment_map[shifted == i] = row + 1
            class_id = np.array([(0, 0, 1, 2)[i] for i in rows], np.int64)
            kernels = base[rows] + 0.4 * rng.normal(size=(len(rows), 5))
            arguments = segment_map, class_id, np.array(CLASSES.is_thing)[class_id], kernels
            ids = tracker.update(*arguments).tolist()
            assert ids == slow.update(*arguments)
            assert len(set(ids)) == len(ids)
            kept += frame > 0 and slow.next_id - 4 < len(ids) + frame
    assert kept > 10  # the films are worth something


def test_a_hidden_thing_gets_its_id_back_by_its_kernel_until_it_is_forgotten():
    tracker = Tracker(len(CLASSES), TrackOptions(memory=2))
    (cat,) = see(tracker, (0, slice(0, 3), A))
    assert see(tracker) == see(tracker) == []
    assert see(tracker, (0, slice(8, 11), 3 * A)) == [cat]  # elsewhere, its kernel of another length
    assert see(tracker) == see(tracker) == see(tracker) == []
    assert see(tracker, (0, slice(8, 11), A)) == [cat + 1]


def test_things_that_exchange_their_places_are_told_by_kernels():
    frames = [((0, slice(0, 4), A), (0, slice(6, 10), B)), ((0, slice(7, 11), A), (0, slice(1, 5), B))]
    for options, exchanged in ((TrackOptions(), False), (TrackOptions(min_similarity=None), True)):
        tracker = Tracker(len(CLASSES), options)
        first, second = (see(tracker, *frame) for frame in frames)
        assert second == (first[::-1] if exchanged else first)


def test_another_class_is_another_thing_and_stuff_goes_by_its_class():
    tracker = Tracker(len(CLASSES))
    assert see(tracker, (2, slice(0, 2), A), (0, slice(4, 8), A)) == [3, 4]
    assert see(tracker, (1, slice(4, 8), A), (2, slice(9, 12), B)) == [5, 3]


def test_a_tracker_without_a_measure_is_refused():
    with pytest.raises(ValueError, match="needs min_iou or min_similarity"):
        Tracker(3, TrackOptions(None, None))


def prediction(order: list[int], shift: int) -> Prediction:
    """Two cats and sky; `order` says which slots of the kernels made the cats. The second segment slot is empty."""
    segment_map = np.full((4, 12), 4, np.int32)
    segment_map[:, shift : shift + 4], segment_map[:, shift + 4 : shift + 8] = 1, 3
    segments = {"class_id": [0, 0, 0, 2], "is_thing": [1, 0, 1, 0], "area": [16, 0, 16, 16], "valid": [1, 0, 1, 1]}
    kinds = {"class_id": np.int32, "is_thing": bool, "area": np.int32, "valid": bool}
    panoptic = PanopticPrediction(
        segment_map=segment_map,
        score=np.full(4, 0.5, np.float32),
        kernel=np.array([order[0], 0, order[1], 1], np.int32),
        **{name: np.array(values, kinds[name]) for name, values in segments.items()},
    )
    things = Kernels(np.stack([A, B]), np.zeros(2, np.int32), np.ones(2, np.float32), np.ones(2, bool))
    return Prediction(panoptic, things, None, None)


def test_results_of_frames_keep_ids_and_colors():
    image = np.full((4, 12, 3), 90, np.uint8)
    frames = [prediction([0, 1], 0), prediction([1, 0], 1)]  # in the second frame the cats have exchanged their places
    is_thing = np.array([True, True, False])
    np.testing.assert_array_equal(segment_kernels(frames[1], is_thing), [B, A, 0 * A])
    tracker = Tracker(len(CLASSES))
    first, second = (tracker.track(make_result(image, frame.panoptic, CLASSES), frame) for frame in frames)
    assert [segment.id for segment in first.segments] == [4, 5, 3]
    assert [segment.id for segment in second.segments] == [5, 4, 3]
    assert [segment.class_name for segment in second.segments] == ["cat", "cat", "sky"]
    np.testing.assert_array_equal(second.segment_map[0], [3] + [5] * 4 + [4] * 4 + [3] * 3)
    assert second.mask(second.segments[0])[:, 1:5].all() and second.to_coco(1, "a.png")["segments_info"][0]["id"] == 5
    drawn = [np.asarray(result.overlay(scale=1, labels=False)) for result in (first, second)]
    np.testing.assert_array_equal(drawn[0][:, 1:3], drawn[1][:, 6:8])
    assert (drawn[0][:, 1:3] != drawn[1][:, 2:4]).any()
