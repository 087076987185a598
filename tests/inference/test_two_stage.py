"""The network once, the thresholds as data: the segments of `Predictor`, and the fate of every kernel."""

from __future__ import annotations

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.apps.explain import command as explain
from pfcn_jax.apps.explain.command import explain_image
from pfcn_jax.apps.explain.fates import tell_fates
from pfcn_jax.errors import ConfigError
from pfcn_jax.inference.predictor import Predictor
from pfcn_jax.inference.two_stage import TwoStagePredictor, with_thresholds
from pfcn_jax.panoptic.fusion import fuse_things
from pfcn_jax.panoptic.options import THRESHOLDS
from tests.apps.demo_parts import scene, tiny_predictor

OTHERS = [{}, {"fusion_threshold": 0.6, "merge_score": 0.05}, {"fusion_threshold": 1.01, "min_stuff_area": 300}]


@pytest.fixture(scope="module")
def seen():
    return tiny_predictor().encode(scene())


def same_segments(one, other):
    np.testing.assert_array_equal(one.segment_map, other.segment_map)
    for name in ("class_id", "is_thing", "area", "valid"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.score, other.score, rtol=1e-6)


def test_in_two_halves_as_in_one(seen):
    predictor, changed = tiny_predictor(), OTHERS[1]
    config = dataclasses.replace(predictor.config, inference=dataclasses.replace(predictor.config.inference, **changed))
    whole = Predictor(predictor.loaded, config)(seen.image)
    halves, _ = predictor.segment(seen, **changed)
    same_segments(halves.panoptic, whole.panoptic)
    assert halves.panoptic.segment_map.shape == seen.image.shape[:2]


def test_thresholds_are_data(seen):
    predictor = tiny_predictor()
    counts = [predictor.segment(seen, fusion_threshold=value)[1] for value in (0.5, 0.9, 0.99, 1.01)]
    fused = [int(count.fused) for count in counts]
    assert len({int(count.picked) for count in counts}) == 1 and fused == sorted(fused)
    assert fused[0] < fused[-1] == int(counts[-1].picked)
    for name in THRESHOLDS:
        predictor.segment(seen, **{name: 0.6})
    assert predictor._run._cache_size() == 1


def test_fusion_above_one_only_sorts_in_both_forms(seen):
    picked = jax.tree.map(jnp.asarray, tiny_predictor().trace(seen).proposed.things.picked)
    plain, data = (fuse_things(picked, threshold=value, class_aware=True) for value in (1.5, np.float32(1.5)))
    np.testing.assert_array_equal(plain.fused.weight, data.fused.weight)
    np.testing.assert_array_equal(plain.fused.valid, data.fused.valid)


def test_unknown_thresholds_are_named():
    with pytest.raises(KeyError, match="fusion: no threshold"):
        with_thresholds(tiny_predictor().config.inference, {"fusion": 0.5})


@pytest.mark.parametrize("changed", OTHERS)
def test_every_kernel_has_one_fate(seen, changed):
    predictor = tiny_predictor()
    trace = predictor.trace(seen, **changed)
    same_segments(trace.prediction.panoptic, predictor.segment(seen, **changed)[0].panoptic)
    merge_score = changed.get("merge_score", predictor.config.inference.merge_score)
    clusters, dropped = tell_fates(trace, merge_score=merge_score)
    told = [fate.kernel for cluster in clusters for fate in cluster.members] + [fate.kernel for fate in dropped]
    assert sorted(told) == np.flatnonzero(trace.proposed.things.picked.valid).tolist() and len(told) > 5
    panoptic = trace.prediction.panoptic
    placed = sorted(cluster.segment for cluster in clusters if cluster.segment)
    assert placed == list(range(1, int(panoptic.is_thing.sum()) + 1)) and placed
    for cluster in clusters:
        assert cluster.head.is_head and len({fate.class_id for fate in cluster.members}) == 1
        assert all(fate.similarity >= changed.get("fusion_threshold", 0.9) for fate in cluster.members[1:])
        mean = np.mean([fate.weight for fate in cluster.members], axis=0)
        np.testing.assert_allclose(cluster.weight, mean, rtol=1e-4, atol=1e-5)
        if cluster.segment:
            row = cluster.segment - 1
            assert panoptic.class_id[row] == cluster.head.class_id
            assert panoptic.score[row] == pytest.approx(cluster.score)
    survivors = sum(cluster.score is not None for cluster in clusters)
    assert survivors == int(trace.prediction.things.valid.sum())


def test_a_peak_is_where_the_centers_are_highest(seen):
    trace = tiny_predictor().trace(seen)
    clusters, dropped = tell_fates(trace, merge_score=0.0)
    places = collections.Counter()
    for fate in [fate for cluster in clusters for fate in cluster.members] + dropped:
        logits = np.asarray(seen.dense.center_logits[fate.level])
        window = logits[max(0, fate.row - 1) : fate.row + 2, max(0, fate.column - 1) : fate.column + 2, fate.class_id]
        assert logits[fate.row, fate.column, fate.class_id] >= np.median(window)
        places[fate.level, fate.row, fate.column, fate.class_id] += 1
    assert set(places.values()) == {1}


def test_the_page_shows_every_step(tmp_path):
    page = explain_image(tiny_predictor(), scene(1), "one", tmp_path, kernels=4).read_text()
    for heading in ("Object centers", "Stuff regions", "Kernels of things", "Which kernels merged", "Kernels of stuff"):
        assert heading in page
    assert "after fusion" in page and "<script" not in page and "http" not in page
    names = {path.name for path in (tmp_path / "one").iterdir()}
    expected = {"image", "panoptic", "centers", "regions", "similarities", "kernels", "stuff"}
    assert {f"{name}.png" for name in expected} <= names


def test_several_views_are_refused():
    loaded = tiny_predictor().loaded
    config = dataclasses.replace(loaded.config, tta=dataclasses.replace(loaded.config.tta, flip=True))
    with pytest.raises(ConfigError, match="one view"):
        TwoStagePredictor(dataclasses.replace(loaded, config=config))


def test_explain_goes_on_over_what_it_cannot_read(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.fromarray(scene()).save(tmp_path / "good.png")
    monkeypatch.setattr(explain, "load_with_config", lambda path, argv: tiny_predictor().loaded)
    monkeypatch.setattr(explain, "TwoStagePredictor", lambda loaded: tiny_predictor())
    assert front_door.main(["explain", "--checkpoint", "x", "--output", str(tmp_path / "out"), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "good.html" in out and (tmp_path / "out" / "good.html").is_file() and "bad.png" in err
    assert front_door.main(["explain", "--checkpoint", "x", "--output", "o", "--kernels", "0", str(tmp_path)]) == 2
