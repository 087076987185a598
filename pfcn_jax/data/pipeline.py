"""Example -> Batch: loading, shuffling, canvases, sharding over hosts, worker processes and a resumable position.

`BatchPlan` says which images form batch t; `BatchLoader` turns t into arrays, reading only this host's rows; Grain
runs the loader in threads or worker processes. Everything random is drawn from (seed, batch, row), so the batches do
not depend on the number of hosts, workers or threads, and the position is a single number.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Bool

from pfcn_jax.data.augment import Recipe
from pfcn_jax.data.buffers import Take, keep_freed_memory, shared_arrays
from pfcn_jax.data.canvas import Size, pad_into
from pfcn_jax.data.example import DataError, Example, Source
from pfcn_jax.data.plan import FILLER, BatchPlan, PlannedBatch
from pfcn_jax.data.segments import map_type
from pfcn_jax.data.transforms import Sample, limit_segments
from pfcn_jax.types import Batch, SegmentTable

Arrays = dict[str, np.ndarray]
# Larger arrays travel from a worker in shared memory. The message itself must fit into a pipe (64 KiB): a worker that
# dies in the middle of one would leave its reader waiting for ever.
_SHARED_BYTES = 1 << 10


def empty_arrays(rows: int, canvas: Size, max_segments: int, *, take: Take = np.zeros) -> Arrays:
    """A batch of filler images: black, void, size 1 x 1, image id -1, not valid.

    Args:
      take: cleared memory for the images and the segment maps, from shape and type.
    """
    return {
        "image": take((rows, *canvas, 3), np.uint8),
        "segment_map": take((rows, *canvas), map_type(max_segments)),
        "class_id": np.zeros((rows, max_segments), np.int32),
        "is_thing": np.zeros((rows, max_segments), bool),
        "is_crowd": np.zeros((rows, max_segments), bool),
        "box": np.zeros((rows, max_segments, 4), np.float32),
        "segment_valid": np.zeros((rows, max_segments), bool),
        "size": np.ones((rows, 2), np.int32),
        "original_size": np.ones((rows, 2), np.int32),
        "image_id": np.full(rows, FILLER, np.int32),
        "valid": np.zeros(rows, bool),
        "dropped_segments": np.zeros(rows, np.int32),
    }


def place(arrays: Arrays, row: int, sample: Sample, image_id: int, is_thing: Bool[np.ndarray, " classes"]) -> None:
    """Writes a sample into row `row`: image and map top-left on the canvas, segments into the first slots.

    More segments than slots: the largest ones stay and the others are counted in `dropped_segments`.
    """
    sample, dropped = limit_segments(sample, arrays["class_id"].shape[1])
    count = len(sample.class_id)
    pad_into(arrays["image"][row], sample.image)
    pad_into(arrays["segment_map"][row], sample.segment_map)
    arrays["class_id"][row, :count] = sample.class_id
    arrays["is_thing"][row, :count] = is_thing[sample.class_id]
    arrays["is_crowd"][row, :count] = sample.is_crowd
    arrays["box"][row, :count] = sample.box
    arrays["segment_valid"][row, :count] = True
    arrays["size"][row] = sample.size
    arrays["original_size"][row] = sample.original_size
    arrays["image_id"][row] = image_id
    arrays["valid"][row] = True
    arrays["dropped_segments"][row] = dropped


def to_batch(arrays: Mapping[str, Any]) -> Batch:
    """The struct that travels to the device (still NumPy arrays)."""
    table = SegmentTable(
        class_id=arrays["class_id"],
        is_thing=arrays["is_thing"],
        is_crowd=arrays["is_crowd"],
        box=arrays["box"],
        valid=arrays["segment_valid"],
    )
    names = ("image", "segment_map", "size", "original_size", "image_id", "valid", "dropped_segments")
    return Batch(segments=table, **{name: arrays[name] for name in names})


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Who loads, and how far ahead; never what a batch holds.

    Attributes:
      workers: processes that load, each a few batches ahead; 0 loads in threads of this process.
      threads: that load in this process.
      buffered_batches: how many batches are loaded ahead in this process.
    """

    workers: int = 0
    threads: int = 2
    buffered_batches: int = 4


class BatchLoader:
    """Batch number -> the arrays of this host's rows. Picklable; may be called from several threads."""

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        plan: BatchPlan,
        *,
        max_segments: int,
        rows: slice,
        max_broken: int | None = None,
        shared: bool = False,
    ):
        """Args as of `Pipeline`; `rows` are those of this host, and `shared` says that the arrays go to another
        process."""
        self.source, self.recipe, self.plan = source, recipe, plan
        self.max_segments, self.rows, self.max_broken, self.shared = max_segments, rows, max_broken, shared
        self._is_thing = np.array(source.classes.is_thing, bool)
        keep_freed_memory()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        keep_freed_memory()
        settle_in_worker()

    def __call__(self, number: int) -> Arrays:
        planned = self.plan[int(number)]
        if not self.shared:
            return self._load(planned, np.zeros)
        with shared_arrays() as take:
            return self._load(planned, take)

    def _load(self, planned: PlannedBatch, take: Take) -> Arrays:
        rows = self.rows.stop - self.rows.start
        taken = empty_arrays(rows, planned.canvas, self.max_segments, take=take)
        arrays = {name: np.asarray(array) for name, array in taken.items()}  # views of NumPy's own type, to write to
        for row, index in enumerate(planned.examples[self.rows].tolist()):
            if index == FILLER:
                continue
            example, index = self._read(index)
            key = [self.plan.seed, 3, planned.number, self.rows.start + row]
            sample = self.recipe(example, np.random.Generator(np.random.PCG64(key)), arrays["image"][row])
            place(arrays, row, sample, index, self._is_thing)
        return taken

    def _read(self, index: int) -> tuple[Example, int]:
        """Example `index`, or, where broken ones are skipped, the next of the same canvas that can be read.

        What stands in for a broken example follows from the plan and the files alone: not from the worker, from what
        was read before, or from where a run was interrupted.
        """
        if self.max_broken is None:
            return self.source[index], index
        group = self.plan.groups[int(self.plan.canvas_of[index])]
        start = int(np.searchsorted(group, index))
        most = min(len(group), self.max_broken + 1)
        for offset in range(most):
            candidate = int(group[(start + offset) % len(group)])
            try:
                return self.source[candidate], candidate
            except DataError as error:
                last = error.with_traceback(None)  # which would hold this batch's memory
        raise DataError(f"{most} images in a row cannot be read, the last: {last}") from last


def settle_in_worker() -> None:
    """Prepares a process that loads batches, if this is one: one OpenCV thread, no signals, ends with its parent."""
    cv2.setNumThreads(1)  # Grain runs several loaders, OpenCV should not multiply them
    parent = multiprocessing.parent_process()
    if parent is None or threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # they may reach the whole group: who trains ends the workers
        signal.signal(number, signal.SIG_IGN)
    # A training process that is killed cannot end its workers, and Grain's would wait for it for ever.
    threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


class Pipeline:
    """Batches of a source. Iterate over it; every iterator starts at batch 0 unless its state is set.

    Attributes:
      plan: the `BatchPlan`; `plan.epoch_of(t)` is the epoch of batch t, `plan.num_batches` the length of an evaluation.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        plan: BatchPlan,
        *,
        process: tuple[int, int],
        max_segments: int,
        max_broken: int | None = None,
        options: LoaderOptions = LoaderOptions(),
    ):
        """Nothing is read yet.

        Args:
          recipe: what happens to each image (`augment`).
          plan: of the batches over all processes.
          process: (index, number) of this process: it reads its own rows of a batch only.
          max_segments: slots of the segment table; of more segments the largest stay.
          max_broken: training only: an example that cannot be read is replaced by its neighbor on the same canvas,
            and `image_id` says so: it differs from the plan's. More than so many of them one after the other are an
            error. None: the first one is.

        Raises:
          ValueError: numbers that do not go together.
        """
        if max_segments < 1:
            raise ValueError(f"max_segments {max_segments}: at least 1")
        if max_broken is not None and not plan.shuffle:
            raise ValueError("an evaluation cannot skip broken examples: its result would not be comparable")
        self.plan, self.options = plan, options
        self.loader = BatchLoader(
            source,
            recipe,
            plan,
            max_segments=max_segments,
            rows=plan.rows_of(process),
            max_broken=max_broken,
            shared=options.workers > 0,
        )

    def __len__(self) -> int:
        """Batches of one pass; a training pipeline has no length."""
        if self.plan.shuffle:
            raise TypeError("a training pipeline is infinite")
        return self.plan.num_batches

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self)

    def arrays_from(self, start: int) -> Iterator[Arrays]:
        """The batches start, start + 1, ..."""
        stop = sys.maxsize if self.plan.shuffle else self.plan.num_batches
        return load_ahead(self.loader, range(start, stop), self.options)


def load_ahead(loader: Callable[[int], Any], numbers: range, options: LoaderOptions) -> Iterator[Any]:
    """Grain's iterator over `loader(number)` for consecutive numbers, loaded ahead in threads or processes.

    Its `close`, where it has one, ends them.
    """
    threads, buffered = options.threads, max(options.buffered_batches, options.threads)
    if options.workers:  # each has one thread: n of them are n cores
        threads = buffered = 0
    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(loader)
    iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered))
    if options.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands the flags to its workers; a library call has parsed none
        sharing = grain.experimental.DatasetOptions(min_shm_size=_SHARED_BYTES)
        iterable = grain.experimental.WithOptionsIterDataset(iterable, sharing)
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=options.workers, per_worker_buffer_size=1)
        )
    return iter(iterable)


class BatchIterator(Iterator[Batch]):
    """Batches in order, with a position that can be saved: `set_state(get_state())` continues with the same batches,
    on any number of hosts, workers and threads."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self._next = 0
        self._arrays: Any = None

    def __next__(self) -> Batch:
        if self._arrays is None:
            if not self.pipeline.plan.shuffle and self._next >= self.pipeline.plan.num_batches:
                raise StopIteration
            self._arrays = self.pipeline.arrays_from(self._next)
        batch = to_batch(next(self._arrays))
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position: small and JSON-able."""
        return {"batch": self._next, "plan": self.pipeline.plan.fingerprint()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a saved position.

        Raises:
          ValueError: the state belongs to other data, canvases, batch size or seed: its number means another batch.
        """
        if state["plan"] != self.pipeline.plan.fingerprint():
            raise ValueError(
                "the saved position belongs to another plan: the images, the canvases, the batch size or the seed "
                "have changed; start the data anew, or restore the settings"
            )
        self.close()
        self._next = int(state["batch"])

    def close(self) -> None:
        """Ends threads and worker processes; the next batch starts them again."""
        if self._arrays is None:
            return
        if hasattr(self._arrays, "close"):
            self._arrays.close()
        self._arrays = None
        if self.pipeline.options.workers:
            gc.collect()  # JAX lets go of a batch's memory with the next collection; shared, it may outlive the process

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
