"""The contract of a metric, over every metric of the package: any distribution of the images gives the same bits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.errors import ConfigError
from pfcn_jax.metrics import registry, transport
from pfcn_jax.metrics.protocol import Labels, Metric, PredictedImage, Task, format_score

NAMES = ("pq", "ap", "miou", "bowl")
CLASSES = ClassTable(names=("cat", "dog", "sky"), category_ids=(17, 18, 90), is_thing=(True, True, False))
TASKS = (Task(CLASSES), Task(CLASSES, thing_regions=2))


def draw_image(rng: np.random.Generator, image_id: int, task: Task) -> tuple[Labels, PredictedImage]:
    """Three labeled segments and a prediction that is partly right, with an empty slot and overlapping masks."""
    truth = np.zeros((24, 30), np.int32)
    for value in (1, 2, 3):
        top, left = rng.integers(0, 16, 2)
        truth[top : top + 8, left : left + 14] = value
    seen = np.roll(truth, int(rng.integers(0, 3)), axis=1)
    class_id = rng.permutation(3).astype(np.int32)
    masks = np.stack([seen == 1, seen == 2, rng.random(seen.shape) < 0.3])
    return Labels(image_id, truth, class_id, np.array([False, False, image_id % 2 == 0])), PredictedImage(
        segment_map=seen,
        class_id=np.concatenate([class_id[:2], rng.integers(0, 3, 1), [0]]).astype(np.int32),
        score=np.full(4, 0.5, np.float32),
        thing_class_id=rng.integers(0, 2, 3).astype(np.int32),
        thing_score=np.round(rng.random(3), 1).astype(np.float32),
        thing_masks=np.packbits(masks, axis=-1),
        semantic_map=rng.integers(-1, task.regions.count, seen.shape).astype(np.int32),
    )


def filled(metric: type[Metric], task: Task, images: list) -> Metric:
    total = metric.zeros(task)
    for labels, prediction in images:
        total.add(labels, prediction)
    return total


@pytest.mark.parametrize("task", TASKS, ids=["any thing", "all classes"])
@pytest.mark.parametrize("name", NAMES)
def test_any_distribution_over_threads_and_processes_gives_the_same_result(name, task):
    metric = registry.find_metrics([name])[name]
    rng = np.random.default_rng(4)
    images = [draw_image(rng, image_id, task) for image_id in range(6)]
    whole = filled(metric, task, images)
    parts = [filled(metric, task, part) for part in (images[3:], images[1:3], [], images[:1])]
    received = [metric.from_arrays(task, transport.unpack(transport.pack(part.to_arrays()))) for part in parts]
    total = metric.zeros(task)
    for part in received:
        total = total + part
    assert json.dumps(whole.summary().values) == json.dumps(total.summary().values)
    assert whole.summary().lines == total.summary().lines
    assert len(whole.summary().figures) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_no_image_has_a_summary_without_scores(name):
    summary = registry.find_metrics([name])[name].zeros(TASKS[0]).summary()
    json.loads(json.dumps(summary.values))
    assert all(math.isnan(value) for value in summary.figures.values())
    assert not any("0.00" in line for line in summary.lines)


def test_miou_says_which_classes_it_is_a_mean_over():
    miou = registry.find_metrics(["miou"])["miou"]
    one, all_classes = (miou.zeros(task).summary() for task in TASKS)
    assert one.values["mIoU_over"] == "any thing as one class, and stuff classes"
    assert all_classes.values["mIoU_over"] == "all classes"


def test_labels_of_things_fall_into_the_channel_of_the_model():
    labels = Labels(0, np.array([[1, 2, 3, 0]]), np.array([0, 1, 2]), np.zeros(3, bool))
    for task, channels in zip(TASKS, ([[0, 0, 1, -1]], [[0, 1, 2, -1]])):
        prediction = PredictedImage(labels.segment_map, labels.class_id, np.ones(3), semantic_map=np.array(channels))
        metric = registry.find_metrics(["miou"])["miou"].zeros(task)
        metric.add(labels, prediction)
        assert metric.summary().figures["mIoU"] == 100.0


def test_every_metric_is_found_by_its_name_once():
    assert list(registry.find_metrics(["pq", "miou", "pq"])) == ["pq", "miou"]


@pytest.mark.parametrize("name, words", [
    ("miuo", ("'miuo'", "did you mean 'miou'", "ap, bowl, miou, pq")),
    ("transport", ("no metric 'transport'",)),
    ("no_such_module:pq", ("cannot import 'no_such_module'", "PYTHONPATH")),
    ("json:pq2", ("no metric 'pq2'",)),
])  # fmt: skip
def test_an_unknown_metric_is_refused(name, words):
    with pytest.raises(ConfigError) as caught:
        registry.find_metrics([name])
    for word in ("config.evaluation.metrics", *words):
        assert word in str(caught.value)


def test_a_name_belongs_to_one_file():
    def other_file() -> type:
        return type("Other", (Metric,), {"__module__": "somewhere.else"})

    with pytest.raises(ValueError, match=r"pfcn_jax\.metrics\.pq has registered that name"):
        registry.find_metrics(["pq"]) and registry.register("pq")(other_file())


def test_an_undefined_score_is_a_dash():
    assert [format_score(value) for value in (None, math.nan, 0.0, 12.345)] == ["-", "-", "0.00", "12.35"]
