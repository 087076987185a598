"""The text table and the JSON of an evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pfcn_jax.metrics.pq import PQCounts, format_table, pq_result
from pfcn_jax.utils.atomic import write_json


def result(tp, fp, fn):
    """IoU 0.75 for every true positive; the last class is stuff."""
    tp, fp, fn = (np.array(part, np.int64) for part in (tp, fp, fn))
    quarters = np.stack([3 * tp << (53 - 26 - 2), 0 * tp], axis=1)
    return pq_result(PQCounts(tp, fp, fn, quarters), [True] * (len(tp) - 1) + [False])


def test_table_lists_groups_and_the_classes_that_exist():
    text = format_table(result([1, 0, 4], [0, 0, 0], [1, 0, 0]), ["cat", "dog", "sky [other]"])
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["PQ", "SQ", "RQ", "N", "TP", "FP", "FN"]
    assert rows[1] == ["All", "62.50", "75.00", "83.33", "2"]
    assert rows[2] == ["Things", "50.00", "75.00", "66.67", "1"]
    assert rows[3] == ["Stuff", "75.00", "75.00", "100.00", "1"]
    assert [row for row in rows[4:] if row] == [
        ["cat", "50.00", "75.00", "66.67", "1", "0", "1"],
        ["sky", "[other]", "75.00", "75.00", "100.00", "4", "0", "0"],
    ]


def test_a_group_without_a_class_has_no_score():
    rows = [line.split() for line in format_table(result([2, 0], [0, 0], [0, 0])).splitlines()]
    assert rows[2] == ["Things", "75.00", "75.00", "100.00", "1"]
    assert rows[3] == ["Stuff", "-", "-", "-", "0"]
    assert rows[-1][:2] == ["class", "0"]


def test_json_is_plain_and_complete(tmp_path):
    path = tmp_path / "deep" / "result.json"
    write_json(
        path, {1: [float("nan"), 2.5], "groups": {"PQ": float("inf")}, "pq": result([1, 1], [0, 0], [0, 0]).to_dict()}
    )
    content = json.loads(path.read_text())
    assert content["1"] == [None, 2.5] and content["groups"] == {"PQ": None}
    assert content["pq"]["All"] == {"PQ": 75.0, "SQ": 75.0, "RQ": 100.0, "N": 2}
    before = path.read_text()
    with pytest.raises(TypeError):
        write_json(path, {"array": np.zeros(2)})
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
