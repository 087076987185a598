"""The Data Science Bowl's score against a slow version that follows its definition pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from pfcn_jax.metrics.bowl import BowlScore
from pfcn_jax.metrics.protocol import Labels, PredictedImage, Task
from tests.metrics.test_protocol import CLASSES


def slow_score(labels: Labels, prediction: PredictedImage, num_things: int) -> float | None:
    """Each pair of instances of one class, at each threshold. Nothing here is void or a crowd."""

    def masks(segment_map: np.ndarray, class_id: np.ndarray) -> list[tuple[int, np.ndarray]]:
        rows = [(int(number), segment_map == row) for row, number in enumerate(class_id, start=1)]
        return [(number, mask) for number, mask in rows if number < num_things and mask.any()]

    truth = masks(labels.segment_map, labels.class_id)
    found = masks(prediction.segment_map, prediction.class_id)
    if not truth and not found:
        return None
    scores = []
    for step in range(10):
        threshold = 0.5 + 0.05 * step
        matched = sum(
            one == other and (mine & theirs).sum() / (mine | theirs).sum() > threshold + 1e-12
            for one, mine in truth
            for other, theirs in found
        )
        scores.append(matched / (len(truth) + len(found) - matched))
    return float(np.mean(scores))


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_mean_of_the_images_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = Task(CLASSES)
    one, other, expected = BowlScore.zeros(task), BowlScore.zeros(task), []
    for image in range(6):
        truth = np.zeros((24, 24), int)
        for row in range(1, rng.integers(1, 6) if image else 1):
            y, x = rng.integers(0, 16, 2)
            truth[y : y + 8, x : x + 8] = row
        moved = np.roll(truth, rng.integers(-1, 2, 2), axis=(0, 1))
        moved[rng.random(moved.shape) < 0.05] = 0
        # All pixels are labeled: what is no thing belongs to a segment of the last class, stuff.
        class_id = np.array([*rng.integers(0, task.num_things, 6), task.num_classes - 1])
        truth[truth == 0] = 7
        moved[moved == 0] = 7
        labels = Labels(image, truth, class_id, np.zeros(7, bool))
        prediction = PredictedImage(moved, class_id, np.ones(7, np.float32))
        (one if image % 2 else other).add(labels, prediction)
        expected.append(slow_score(labels, prediction, task.num_things))
    counted = [score for score in expected if score is not None]
    assert len(counted) < len(expected), "one image holds no thing"
    assert (one + other).summary().values["bowl"] == pytest.approx(np.mean(counted), abs=1e-11)
    assert (one + other).to_arrays()["bowl"].tolist() == (other + one).to_arrays()["bowl"].tolist()


def test_without_things_it_is_undefined() -> None:
    assert np.isnan(BowlScore.zeros(Task(CLASSES)).summary().figures["bowl"])
