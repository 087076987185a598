"""The pipeline: what a batch holds, and that hosts, threads, workers and interruptions change nothing."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pfcn_jax.data.augment import ResizeShortSide
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.example import DataError, Example
from pfcn_jax.data.pipeline import LoaderOptions, Pipeline
from pfcn_jax.data.plan import BatchPlan
from pfcn_jax.data.transforms import resize, resized_size
from pfcn_jax.types import Batch
from tests.data.fixtures import write_tiny_coco

CANVASES = ((64, 96), (96, 64))
TRAIN = ResizeShortSide((48, 56, 64), 96, flip=0.5)
EVALUATE = ResizeShortSide((64,), 96)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_tiny_coco(tmp_path_factory.mktemp("tiny"), splits={"train": 10, "val": 7})


def training(root, *, batch_size=4, canvases=CANVASES, seed=3, **options):
    source = CocoFolder(root, "train")
    plan = BatchPlan(
        source.sizes(), TRAIN.largest_size, canvases=canvases, batch_size=batch_size, shuffle=True, seed=seed
    )
    return Pipeline(source, TRAIN, plan, **{"process": (0, 1), "max_segments": 16, **options})


def evaluation(root, **options):
    source = CocoFolder(root, "val")
    plan = BatchPlan(source.sizes(), EVALUATE.largest_size, canvases=CANVASES, batch_size=3, shuffle=False)
    return Pipeline(source, EVALUATE, plan, **{"process": (0, 1), "max_segments": 16, **options})


def take(pipeline: Pipeline, count: int) -> list[Batch]:
    with iter(pipeline) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(ours: Batch, theirs: Batch) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_batch_holds_what_its_examples_say(root):
    source, pipeline = CocoFolder(root, "val"), evaluation(root)
    is_thing = np.array(source.classes.is_thing)
    seen = []
    for batch in pipeline:
        height, width = batch.image.shape[1:3]
        assert (height, width) in CANVASES and batch.image.dtype == np.uint8
        for row in np.flatnonzero(batch.valid):
            index = int(batch.image_id[row])
            seen.append(index)
            example = source[index]
            size = resized_size(example.segment_map.shape, 64, 96)
            expected = resize(example, size)
            assert tuple(batch.size[row]) == size and tuple(batch.original_size[row]) == example.segment_map.shape
            np.testing.assert_array_equal(batch.image[row, : size[0], : size[1]], expected.image)
            np.testing.assert_array_equal(batch.segment_map[row, : size[0], : size[1]], expected.segment_map)
            for padding in (batch.image[row], batch.segment_map[row]):
                assert not padding[size[0] :].any() and not padding[:, size[1] :].any()
            count, table = len(example.class_id), jax.tree.map(lambda leaf, row=row: leaf[row], batch.segments)
            assert table.valid.tolist() == [True] * count + [False] * (16 - count)
            np.testing.assert_array_equal(table.class_id[:count], example.class_id)
            np.testing.assert_array_equal(table.is_thing[:count], is_thing[example.class_id])
            np.testing.assert_array_equal(table.is_crowd[:count], example.is_crowd)
            np.testing.assert_array_equal(table.box[:count], expected.box.astype(np.float32))
            assert not table.is_thing[count:].any() and not table.box[count:].any()
        filler = ~batch.valid
        assert (batch.image_id[filler] == -1).all() and (batch.size[filler] == 1).all()
        assert not batch.image[filler].any() and not batch.segments.valid[filler].any()
        assert not batch.dropped_segments.any()
    assert sorted(seen) == list(range(7))
    assert len(pipeline) == len(list(pipeline))


def test_every_leaf_has_its_dtype(root):
    batch = take(training(root), 1)[0]
    expected = {
        "image": np.uint8, "segment_map": np.uint8, "size": np.int32, "original_size": np.int32,
        "image_id": np.int32, "valid": np.bool_, "dropped_segments": np.int32,
    }  # fmt: skip
    for name, dtype in expected.items():
        assert getattr(batch, name).dtype == dtype, name
    table = {"class_id": np.int32, "is_thing": np.bool_, "is_crowd": np.bool_, "box": np.float32, "valid": np.bool_}
    for name, dtype in table.items():
        assert getattr(batch.segments, name).dtype == dtype, name


def test_training_is_deterministic_and_varied(root):
    first, second = take(training(root), 8), take(training(root), 8)
    for ours, theirs in zip(first, second):
        assert_same(ours, theirs)
    other = take(training(root, seed=4), 8)
    assert any((a.image_id != b.image_id).any() for a, b in zip(first, other))
    assert len({tuple(size) for batch in first for size in batch.size.tolist()}) > 4
    assert all(batch.valid.all() for batch in first)


@pytest.mark.parametrize("options", [LoaderOptions(threads=1), LoaderOptions(0, 5, 9), LoaderOptions(workers=2)])
def test_threads_and_workers_change_nothing(root, options):
    for ours, theirs in zip(take(training(root), 6), take(training(root, options=options), 6)):
        assert_same(ours, theirs)


def test_hosts_share_the_rows_of_the_global_batch(root):
    whole = take(training(root), 5)
    hosts = [take(training(root, process=(p, 2)), 5) for p in range(2)]
    for number, batch in enumerate(whole):
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(host[number] for host in hosts))
        assert_same(batch, joined)


def test_a_restored_position_continues_with_the_same_batches(root):
    batches = iter(training(root))
    for _ in range(3):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches) for _ in range(4)]
    assert len(json.dumps(state)) < 100
    batches.set_state(state)  # backwards, in the same iterator
    assert_same(expected[0], next(batches))
    batches.close()
    # Another process, with other threads and as one of two hosts.
    with iter(training(root, options=LoaderOptions(threads=1), process=(1, 2))) as later:
        later.set_state(state)
        for batch in expected:
            assert_same(jax.tree.map(lambda leaf: leaf[2:], batch), next(later))


def test_a_position_of_other_data_is_refused(root):
    state = iter(training(root)).get_state()
    with pytest.raises(ValueError, match="belongs to another plan"):
        iter(training(root, seed=5)).set_state(state)


def test_an_evaluation_ends_and_can_be_resumed_at_its_end(root):
    batches = iter(evaluation(root))
    assert len(list(batches)) == len(evaluation(root))
    with pytest.raises(StopIteration):
        next(batches)
    resumed = iter(evaluation(root))
    resumed.set_state(batches.get_state())
    with pytest.raises(StopIteration):
        next(resumed)


def test_more_segments_than_slots_are_dropped_and_counted(root):
    full, few = evaluation(root), evaluation(root, max_segments=3)
    for whole, batch in zip(full, few):
        number = whole.segments.valid.sum(1)
        np.testing.assert_array_equal(batch.dropped_segments, np.maximum(number - 3, 0))
        assert batch.segments.valid.sum(1).max() == 3 and batch.segment_map.max() == 3
    assert batch.segments.class_id.shape[1] == 3


class Breaking:
    """A source of which some examples cannot be read."""

    def __init__(self, source: CocoFolder, broken: set[int]):
        self.source, self.broken = source, broken
        self.classes, self.info, self.sizes = source.classes, source.info, source.sizes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        if index in self.broken:
            raise DataError(f"{self.info(index).file_name}: broken")
        return self.source[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_and_is_named(root, workers):
    (root / "annotations/panoptic_val/000000000002.png").rename(root / "hidden.png")
    try:
        with pytest.raises(Exception, match=r"000000000002\.png \(image 2\)"):
            take(evaluation(root, options=LoaderOptions(workers)), 3)
    finally:
        (root / "hidden.png").rename(root / "annotations/panoptic_val/000000000002.png")


def _with_broken(root, broken: set[int], **options) -> Pipeline:
    pipeline = training(root, max_broken=100, **options)
    pipeline.loader.source = Breaking(CocoFolder(root, "train"), broken)
    return pipeline


def test_what_stands_in_for_a_broken_image_follows_from_the_plan_alone(root):
    whole, broken = take(training(root), 8), {1, 4}
    batches = take(_with_broken(root, broken, options=LoaderOptions(threads=1)), 8)
    assert {int(i) for batch in batches for i in batch.image_id} == set(range(10)) - broken
    for ours, theirs in zip(batches, whole):
        replaced = np.isin(theirs.image_id, list(broken))
        np.testing.assert_array_equal(ours.image_id != theirs.image_id, replaced)  # so who reads it knows which
        np.testing.assert_array_equal(ours.image[~replaced], theirs.image[~replaced])
        assert ours.valid.all() and ours.image.shape == theirs.image.shape
    assert any(np.isin(batch.image_id, list(broken)).any() for batch in whole)
    # From the middle, by other workers and threads: the same.
    with iter(_with_broken(root, broken, options=LoaderOptions(workers=1))) as later:
        later.set_state({**iter(training(root)).get_state(), "batch": 3})
        for batch in batches[3:6]:
            assert_same(batch, next(later))


def test_a_canvas_without_a_readable_image_is_an_error(root):
    with pytest.raises(DataError, match=r"\d+ images .*: broken"):
        take(_with_broken(root, set(range(10))), 1)


WATCHED = """
import os, sys
sys.path.insert(0, {root!r})
from tests.data.test_pipeline import LoaderOptions, training
if __name__ == "__main__":
    batches = iter(training({data!r}, options=LoaderOptions(workers=1)))
    next(batches)
    print(*[child.pid for child in __import__("multiprocessing").active_children()], flush=True)
    os.kill(os.getpid(), 9)
"""


def test_workers_do_not_outlive_a_training_process_that_is_killed(root, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(WATCHED.format(root=str(pathlib.Path(__file__).parents[2]), data=str(root)))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    pids = [int(word) for word in ran.stdout.split()]
    assert ran.returncode == -9 and pids, ran.stderr
    deadline = time.monotonic() + 30
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


CONSUMER = """
import sys, time
sys.path.insert(0, {root!r})
import jax
import jax.numpy as jnp
from tests.data.test_pipeline import LoaderOptions, training
if __name__ == "__main__":
    step = jax.jit(lambda total, batch: total + jnp.sum(batch.image, dtype=jnp.int32))
    total = jnp.int32(0)
    with iter(training({data!r}, options=LoaderOptions(workers=1))) as batches:
        for _ in range(8):
            total = step(total, jax.device_put(next(batches)))
        total.block_until_ready()
    time.sleep(1.0)  # Grain frees in a thread
"""


def test_no_shared_memory_outlives_what_read_it(root, tmp_path):
    script = tmp_path / "consumer.py"
    script.write_text(CONSUMER.format(root=str(pathlib.Path(__file__).parents[2]), data=str(root)))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0 and "leaked" not in ran.stderr, ran.stderr


def _lives(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_is_an_error_and_one_that_is_asked_to_stop_is_not(root, signal_number):
    pipeline = training(root, batch_size=16, max_segments=255, options=LoaderOptions(workers=2))
    before = {process.pid for process in multiprocessing.active_children()}
    with iter(pipeline) as batches:
        for _ in range(4):  # each worker has sent two, so both know what a signal means
            next(batches)
        time.sleep(1.0)  # every worker now waits for a place for its batch
        workers = [process for process in multiprocessing.active_children() if process.pid not in before]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal_number)
        if signal_number == signal.SIGTERM:
            for _ in range(12):
                next(batches)
            return
        with pytest.raises(RuntimeError):
            for _ in range(12):
                next(batches)


def test_unusable_settings_are_refused(root):
    for options, message in (
        ({"process": (0, 3)}, "batch size 4 on process 0 of 3"),
        ({"process": (2, 2)}, "process 2 of 2"),
        ({"max_segments": 0}, "max_segments 0"),
        ({"canvases": ((32, 32),)}, "fits on no canvas"),
    ):
        with pytest.raises(ValueError, match=message):
            training(root, **options)
    with pytest.raises(ValueError, match="cannot skip broken examples"):
        evaluation(root, max_broken=100)
    with pytest.raises(TypeError, match="infinite"):
        len(training(root))
    assert dataclasses.is_dataclass(Batch)
