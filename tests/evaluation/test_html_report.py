"""The report of an evaluation: what it counts, which images it keeps, and that the page needs nothing but itself."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.example import Example
from pfcn_jax.data.segments import find_runs
from pfcn_jax.evaluation import html_report
from pfcn_jax.evaluation.html_report import ReportCollector
from pfcn_jax.metrics.pq import PQCounts, pq_counts, pq_result
from pfcn_jax.panoptic.predict import Prediction
from pfcn_jax.types import PanopticPrediction

CLASSES = ClassTable(("<b>cat</b>", "dog", "sky & sea"), (1, 2, 3), (True, True, False))


def example(name, truth, class_id):
    image = np.random.default_rng(0).integers(0, 256, (*truth.shape, 3)).astype(np.uint8)
    class_id = np.array(class_id, np.int32)
    return Example(image, find_runs(truth), class_id, np.zeros(len(class_id), bool), name, name)


def prediction(segment_map, class_id):
    """As the program returns it: slots, of which some are not used."""
    slots = len(class_id) + 2
    padded = np.zeros(slots, np.int32)
    padded[: len(class_id)] = class_id
    valid = np.arange(slots) < len(class_id)
    area = np.bincount(segment_map.ravel(), minlength=slots + 1)[1:]
    panoptic = PanopticPrediction(
        segment_map.astype(np.int32), padded, padded < 2, np.full(slots, 0.5, np.float32), area, valid
    )
    return Prediction(panoptic, things=None, thing_masks=None, semantic_map=None)


def image(size, *, good):
    """A cat and a dog before the sky; `good` of the two are found, a dog that is not found is taken for a cat."""
    truth = np.full((64, 64), 3, np.int32)
    truth[5 : 5 + size, 5 : 5 + size], truth[40:60, 40:60] = 1, 2
    seen = truth.copy()
    if good < 1:
        seen[seen == 1] = 3
    return truth, [0, 1, 2], seen, [0, 1 if good > 1 else 0, 2]


@pytest.fixture
def written(tmp_path):
    collector, counts = ReportCollector(CLASSES, limit=3), PQCounts.zeros(3)
    for index, good in enumerate([2, 1, 0, 2, 1]):
        truth, classes, seen, seen_classes = image(20, good=good)
        name = f"<script>{index}.png"
        collector(example(name, truth, classes), prediction(seen, seen_classes))
        counts += pq_counts(truth, classes, [False] * 3, seen, seen_classes, 3)
    void = np.zeros((8, 8), np.int32)
    collector(example("empty.png", void, []), prediction(void, []))  # has no score
    result = pq_result(counts, CLASSES.is_thing)
    others = {"AP": float("nan"), "mIoU": 61.25}
    page = collector.write(tmp_path, result, title="a <title>", subtitle="data", others=others)
    return collector, result, page.read_text(), json.loads((tmp_path / "report.json").read_text())


def test_the_worst_images_come_first_and_the_rest_is_let_go(written):
    collector, _, page, values = written
    names = [entry["file_name"] for entry in values["worst_pictures"]]
    assert names == ["<script>2.png", "<script>1.png", "<script>4.png"]
    scores = [entry["PQ"] for entry in values["worst_pictures"]]
    assert scores == sorted(scores) and collector.scored == 5
    assert [page.index(f"&lt;script&gt;{index}.png</h3>") for index in (2, 1, 4)] == sorted(
        page.index(f"&lt;script&gt;{index}.png</h3>") for index in (2, 1, 4)
    )
    assert "empty.png" not in page and "3 of 5 images" in page


def test_the_page_needs_nothing_but_itself_and_trusts_no_name(written):
    page = written[2]
    assert "<script" not in page and "<b>cat" not in page and "http" not in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page and "sky &amp; sea" in page and "a &lt;title&gt;" in page
    sources = re.findall(r'src="([^"]{0,24})', page)
    assert len(sources) == 3 * 4 and all(source.startswith("data:image/webp;base64,") for source in sources)


def test_figures_of_page_and_json_are_the_evaluations(written):
    _, result, page, values = written
    assert values["All"]["PQ"] == pytest.approx(result.all.PQ) and values["mIoU"] == 61.25 and values["AP"] is None
    for figure in (result.all.PQ, result.things.PQ, result.stuff.SQ, 61.25):
        assert f"{figure:.1f}" in page
    dog = values["per_class"]["2"]
    assert (dog["TP"], dog["FN"], values["per_class"]["1"]["FP"]) == (2, 3, 3)
    small = values["sizes"]["small"]["per_class"]
    assert small["1"]["TP"] == 4 and values["sizes"]["medium"]["per_class"]["3"]["TP"] == 5
    confusion = np.array(values["confusion"]["counts"])
    assert confusion[1, 0] == 3 and confusion[0, 3] == 1 and confusion.diagonal().tolist() == [4, 2, 5, 0]


def test_errors_are_drawn_in_their_colors():
    collector = ReportCollector(CLASSES, limit=1)
    truth, classes, seen, seen_classes = image(20, good=0)
    collector(example("a.png", truth, classes), prediction(seen, seen_classes))
    panels = dict(html_report._panels(collector.worst()[0], CLASSES))
    assert len({panel.shape for panel in panels.values()}) == 1
    errors = panels["errors"]
    scale = errors.shape[0] // 64
    cat, dog, sky = errors[15 * scale, 15 * scale], errors[50 * scale, 50 * scale], errors[2 * scale, 60 * scale]
    assert cat.argmax() == 2 and cat[2] > cat[0] + 60  # missed: blue
    assert dog[0] > dog[2] + 60 and dog[1] > dog[2] + 40  # wrong class: orange
    assert int(np.ptp(sky)) < 5  # correct: gray


def test_scenes_that_are_found_make_a_perfect_report(tmp_path):
    source = Scenes("val", size=(64, 64))
    collector, counts = ReportCollector(source.classes, limit=2), PQCounts.zeros(len(source.classes))
    for index in range(3):
        one = source[index]
        collector(one, prediction(one.segment_map, one.class_id))
        counts += pq_counts(
            one.segment_map, one.class_id, one.is_crowd, one.segment_map, one.class_id, len(source.classes)
        )
    result = pq_result(counts, source.classes.is_thing)
    text = collector.write(tmp_path, result, title="t", subtitle="s", others={}).read_text()
    assert result.all.PQ == 100 and "No segment was found under another class." in text


def test_what_the_report_cannot_do_is_said(capsys):
    files = ["--gt-json", "a", "--gt-dir", "b", "--pred-json", "c", "--pred-dir", "d"]
    assert front_door.main(["evaluate", *files, "--report", "out"]) == 2
    assert "--report draws images" in capsys.readouterr().err
