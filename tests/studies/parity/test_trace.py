"""Recorded trainings of the original, replayed through our training step."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import class_table
from pfcn_jax.errors import UserError
from pfcn_jax.models.build import build_model
from pfcn_jax.studies.parity.trace import FIXED, LOSSES, read_trace, trace_files
from pfcn_jax.studies.parity.trace_page import draw_traces, trace_lines
from pfcn_jax.studies.parity.trace_predictions import compare_predictions, predict_maps
from pfcn_jax.studies.parity.trace_study import positives_of_boxes, study_trace, study_traces, weights_folder
from tests.support.tiny import TINY, tiny_variables


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    import jax

    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to an integer power
        yield


def _arrays(**changed) -> dict[str, np.ndarray]:
    """A recorded training of one step on two images, 40 x 60 and 33 x 64, with two instances, a crowd and stuff."""
    rng = np.random.default_rng(0)
    optim = {"base_lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "clip_value": 35.0, "max_iter": 10}
    optim |= {"warmup_iters": 2, "warmup_factor": 0.001, "poly_power": 0.9, **FIXED}
    arrays = {
        "__meta__": "{}",
        "config": json.dumps({"config": "R50-400-3x", "pos_num": 3}),
        "optim": json.dumps(optim),
        "loss_names": json.dumps(LOSSES),
        "runs": json.dumps(["float32"]),
        "float32/losses": np.ones((1, 4)),
        "batch": 2,
        "padded": np.array([64, 64]),
    }
    for index, (height, width) in enumerate([(40, 60), (33, 64)]):
        masks = np.zeros((2, height, width), bool)
        masks[0, 2:10, 3:20] = masks[1, 12:30, 5:9] = True
        semantic = np.full((height, width), 255, np.uint8)
        semantic[:, 30:] = 7
        semantic[30:, 10:20] = 0  # a crowd: a thing, and in no mask
        semantic[masks.any(axis=0)] = 0
        arrays |= {
            f"in{index}.image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
            f"in{index}.masks.bits": np.packbits(masks, axis=-1),
            f"in{index}.masks.shape": np.array(masks.shape),
            f"in{index}.sem_seg": semantic,
            f"in{index}.classes": np.array([3, 79], np.int32),
            f"in{index}.boxes": np.array([[3, 2, 20, 10], [5, 12, 9, 30]], np.float32),
        }
    return arrays | changed


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    np.savez(path, **arrays)
    return path


def test_a_recorded_batch_as_the_pipeline_makes_it(tmp_path):
    arrays = _arrays()
    trace = read_trace(_write(tmp_path / "trace_x.npz", arrays))
    (batch,) = trace.batches
    assert batch.image.shape == (2, 64, 64, 3) and batch.size.tolist() == [[40, 60], [33, 64]]
    np.testing.assert_array_equal(batch.image[0, :40, :60], arrays["in0.image"][..., ::-1])
    assert not np.asarray(batch.image[0, 40:]).any() and not np.asarray(batch.segment_map[1, 33:]).any()
    ids, table = np.asarray(batch.segment_map[0]), batch.segments
    assert set(np.unique(ids)) == {0, 1, 2, 3, 3 + 7}
    assert (ids[2:10, 3:20] == 1).all() and (ids[31:40, 12:19] == 3).all() and (ids[:40, 30:60] == 10).all()
    rows = np.array([1, 2, 3, 10]) - 1
    assert np.flatnonzero(table.valid[0]).tolist() == rows.tolist()
    assert table.class_id[0][rows].tolist() == [3, 79, 0, 80 + 6]
    assert table.is_thing[0][rows].tolist() == [True, True, True, False]
    assert table.is_crowd[0][rows].tolist() == [False, False, True, False]
    np.testing.assert_array_equal(table.box[0][:2], arrays["in0.boxes"])
    assert positives_of_boxes(trace, 0) == 4  # each on p3 alone, in both images
    assert trace.config.targets.padding == "canvas" and trace.config.loss.positives == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss_names": json.dumps(["loss"])}, "its losses are"),
        ({"optim": json.dumps({**FIXED, "nesterov": True})}, "optim.nesterov is True"),
        ({"padded": np.array([64, 96])}, "padded is not"),
        ({"in0.sem_seg": np.ones((40, 60), np.uint8)}, "in0.masks overlap"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        read_trace(_write(tmp_path / "trace_x.npz", _arrays(**changed)))


def test_overlapping_masks_are_refused(tmp_path):
    both = np.ones((2, 40, 60), bool)
    changed = {"in0.masks.bits": np.packbits(both, axis=-1), "in0.sem_seg": np.zeros((40, 60), np.uint8)}
    with pytest.raises(UserError, match=r"in0\.masks overlap"):
        read_trace(_write(tmp_path / "trace_x.npz", _arrays(**changed)))


def test_files_and_weights_are_found(tmp_path):
    (tmp_path / "trace").mkdir()
    _write(tmp_path / "trace" / "trace_x.npz", _arrays())
    for folder in (tmp_path, tmp_path / "trace"):
        assert [path.name for path in trace_files(folder)] == ["trace_x.npz"]
        with pytest.raises(UserError, match=r"no weights\.py"):
            weights_folder(folder)
    with pytest.raises(UserError, match=r"no trace_y; there are trace_x"):
        study_traces(tmp_path, names=["trace_y"])
    with pytest.raises(UserError, match=r"no trace_x/float16; there are trace_x/padding, "):
        study_traces(tmp_path, variants=["trace_x/float16"])
    (tmp_path / "weights.py").touch()
    (tmp_path / "tensors").mkdir()
    assert weights_folder(tmp_path / "trace") == weights_folder(tmp_path) == tmp_path


def test_predictions_at_the_end(tmp_path):
    """Our own maps as the recorded ones: no difference; then one pixel and a perturbed run."""
    model = build_model(from_command_line(TINY).model, *class_table().counts)
    variables = tiny_variables(model)
    assert compare_predictions(read_trace(_write(tmp_path / "trace_x.npz", _arrays())), model, variables) == []

    images = {f"b0.{key}": value for key, value in _arrays().items() if key.startswith("in")}
    batch = {"batches": 1, "b0.batch": 2, "b0.padded": np.array([64, 64])}
    names = ["b0.in0", "b0.in1"]
    maps = predict_maps(
        read_trace(_write(tmp_path / "trace_y.npz", _arrays(**images, **batch))), model, variables, names
    )
    assert {name: found.shape for name, found in maps.items()} == {"b0.in0": (40, 60), "b0.in1": (33, 64)}
    assert len(np.unique(maps["b0.in0"])) > 1
    recorded = {f"final/default/{name}.sem_argmax": found for name, found in maps.items()}
    other = maps["b0.in0"].copy()
    other[3, 5] += 1
    recorded |= {f"final_ulp/default/{name}.sem_argmax": maps[name] for name in names}
    recorded["final/default/b0.in0.sem_argmax"] = other
    trace = read_trace(_write(tmp_path / "trace_z.npz", _arrays(**images, **batch, **recorded)))
    rows = compare_predictions(trace, model, variables)
    assert [row.run for row in rows] == ["ours", "float32_ulp"]
    for row in rows:
        np.testing.assert_allclose(row.shares, [1 / (40 * 60), 0.0])
    assert rows[0].median == 0.5 / (40 * 60)


def test_the_first_steps_of_a_training(reference_dir, tmp_path):
    """The slowest training of the original, twelve steps: losses, rates, positives, parameters."""
    outcome = study_trace(reference_dir / "trace" / "trace_small_lr3e-6.npz", reference_dir, steps=12)
    failed = [one for one in outcome.checks if not one.ok]
    assert not failed, "\n".join(map(str, failed))
    assert {row.step for row in outcome.parameters} == {10}
    assert len(outcome.checks) == 2 + 2 + 2 + 2
    text = "\n".join(trace_lines([outcome]))
    assert "| trace_small_lr3e-6 | ours, float32 | 12 |" in text and "not ok" not in text
    draw_traces([outcome], tmp_path / "images" / "x.png")
    assert (tmp_path / "images" / "x.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace_small"])
def test_a_whole_training(reference_dir, name):
    outcome = study_trace(reference_dir / "trace" / f"{name}.npz", reference_dir)
    failed = [one for one in outcome.checks if not one.ok]
    assert not failed, "\n".join(map(str, failed))
