"""Checkpoints of a run: writes them in the background, deletes old ones, finds the newest intact one."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pfcn_jax.checkpoints.format import FORMAT, SCORE, CheckpointError, Handler, Items, read_score
from pfcn_jax.checkpoints.manifest import find_damage
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.stderr import print_lines

PyTree = Any
_DELETED = ".deleted"  # a folder on its way out
_SETTLE_SECONDS = 0.05


class Checkpoints:
    """Keeps the latest checkpoints of a run and the best ones by PQ.

    The state is the same on every process, so process 0 writes alone; elsewhere the methods do nothing.

    A checkpoint that cannot be written (the disk is full) is reported and counted, and the run continues.

    Attributes:
      failures: number of checkpoints that could not be written.
      problem: error of the last one; "" if it was written.
    """

    def __init__(self, workdir: pathlib.Path, *, keep_latest: int, keep_best: int):
        self.directory = workdir.absolute() / "checkpoints"
        self.failures, self.problem = 0, ""
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._writes = jax.process_index() == 0
        self._writer: ocp.AsyncCheckpointer | None = None
        self._writing: int | None = None
        logging.getLogger("absl").addFilter(_is_not_from_orbax_threads)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending.

        Raises:
          OSError: the directory cannot be read.
        """
        return sorted(int(name) for name in self._names() if name.isdigit())

    def _names(self) -> list[str]:
        """Names in the directory. (`Path.glob` would return nothing if it cannot be read.)"""
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def has(self, step: int) -> bool:
        """Returns True if a step has a checkpoint; False, with a `problem`, if the directory cannot be read."""
        try:
            return step in self.steps()
        except OSError as error:
            self.problem = f"{self.directory} cannot be read: {error.strerror}"
            return False

    def newest_intact(self) -> int | None:
        """Returns the newest step whose checkpoint is intact; None if there is no checkpoint at all. For process 0.

        Deletes what an interrupted run has left incomplete. Reports damaged checkpoints file by file, and moves them to
        `<workdir>/damaged/`, so that the run can write these steps again.

        Raises:
          CheckpointError: there are checkpoints, but every one is damaged; or the directory cannot be read.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clear()
            steps = self.steps()
        except OSError as error:
            raise CheckpointError(f"{self.directory}: cannot be read ({error.strerror})") from error
        bad: dict[int, list[str]] = {}
        for step in reversed(steps):
            lines = find_damage(self.directory / str(step))
            if not lines:
                self._move_damaged(bad, step)
                return step
            bad[step] = lines
        if bad:
            listing = "\n  ".join(f"{step}: {line}" for step, lines in bad.items() for line in lines[:3])
            raise CheckpointError(
                f"{self.directory}: every checkpoint is damaged; no new run is started over them:\n  {listing}\n"
                "restore the files, or start another workdir (with --init-from and what is left)"
            )
        return None

    def save(self, step: int, *, model: PyTree, training: PyTree, meta: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint in the background; does nothing if the step has one."""
        if not self._writes:
            return
        self.wait()
        try:
            if step in self.steps():
                return
            if self._writer is None:
                self._writer = ocp.AsyncCheckpointer(_handler(), async_options=_ASYNC, multiprocessing_options=_ALONE)
            self._writer.save(
                self.directory / str(step),
                args=Items(
                    model=ocp.args.StandardSave(_local(model)),
                    training=ocp.args.StandardSave(_local(training)),
                    meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
                ),
            )
            self._writing = step
        except Exception as error:  # of many kinds: TensorStore's are ValueErrors
            self._note_failure(step, error)

    def wait(self) -> None:
        """Waits until the checkpoint in progress is on disk, or has failed."""
        if self._writing is None or self._writer is None:
            return
        step, self._writing = self._writing, None
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            self._note_failure(step, error)
            return
        self.problem = ""
        self._delete_old()

    def poll(self) -> None:
        """Reports a checkpoint that has failed in the background; does not wait for one in progress."""
        if self._writing is None or self._writer is None:
            return
        try:
            self._writer.check_for_errors()
        except Exception as error:
            step, self._writing = self._writing, None
            self._note_failure(step, error)

    def score(self, step: int, pq: float) -> None:
        """Adds the PQ of an evaluation to the checkpoint of its step; by it the best ones are kept."""
        if not self._writes:
            return
        self.wait()
        target = self.directory / str(step)
        if target.is_dir():
            try:
                write_json(target / SCORE, {"PQ": pq})
            except OSError as error:
                print_lines(
                    f"{target / SCORE}: cannot be written ({error.strerror}); this step will not count as the best"
                )
            self._delete_old()

    def close(self) -> None:
        """Waits for the checkpoint in progress, and closes the writer."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _note_failure(self, step: int, error: Exception) -> None:
        self.failures += 1
        self.problem = " ".join(str(error).split())[:300]
        print_lines(f"{self.directory / str(step)}: this checkpoint could not be written ({self.problem})")
        if self._writer is not None:
            with contextlib.suppress(Exception):  # its error has been reported
                self._writer.close()
            self._writer = None
        for _ in range(20):  # an incomplete one takes the space that the next one needs
            with contextlib.suppress(OSError):
                self._clear()
                time.sleep(_SETTLE_SECONDS)
                if not self._leftovers():  # Orbax's threads may have written for a moment longer
                    break

    def _leftovers(self) -> list[pathlib.Path]:
        """Incomplete and half-deleted checkpoints."""
        names = [name for name in self._names() if name.endswith(_DELETED) or ".orbax-checkpoint-tmp" in name]
        return [self.directory / name for name in names]

    def _clear(self) -> None:
        for path in self._leftovers():
            shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self) -> None:
        """Deletes all but the latest and the best; renames first, so that a half-deleted one does not count.

        A checkpoint whose score cannot be read may be the best, so it is kept.
        """
        try:
            self._clear()
            steps = self.steps()
        except OSError:
            return  # retried after the next checkpoint
        scores, unknown = [], set()
        for step in steps:
            try:
                pq = read_score(self.directory / str(step))
            except (OSError, ValueError):
                unknown.add(step)
            else:
                scores += [] if pq is None else [(pq, step)]
        best = {step for _, step in sorted(scores, reverse=True)[: self._keep_best]}
        for step in set(steps[: -self._keep_latest]) - best - unknown:
            old = self.directory / str(step)
            with contextlib.suppress(OSError):
                shutil.rmtree(old.rename(old.with_name(f"{step}{_DELETED}")))

    def _move_damaged(self, bad: Mapping[int, Sequence[str]], instead: int) -> None:
        for step, lines in bad.items():
            place = self.directory.parent / "damaged" / str(step)
            while place.exists():
                place = place.with_name(place.name + "_")
            place.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(place)
            print_lines(
                f"{self.directory / str(step)}: damaged, so the checkpoint of step {instead} is used; moved to {place}",
                *[f"  {line}" for line in lines],
            )


# Only process 0 takes part. Directories are created synchronously: a full disk is then an error and not a timeout.
_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="pfcn")
_ASYNC = ocp.options.AsyncOptions(create_directories_asynchronously=False)


def _handler() -> ocp.CompositeCheckpointHandler:
    return Handler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=_ALONE, async_options=_ASYNC),
        model=ocp.StandardCheckpointHandler(multiprocessing_options=_ALONE),
        training=ocp.StandardCheckpointHandler(multiprocessing_options=_ALONE),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=_ALONE),
    )


def _local(tree: PyTree) -> PyTree:
    """Converts replicated arrays to arrays of this process alone.

    With several processes to copies in NumPy: Orbax refuses a `jax.Array` that only one process has, and the next step
    reuses (donates) the memory of these.
    """
    alone = jax.process_count() == 1

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        data = leaf.addressable_data(0)
        return data if alone else np.array(data)

    return jax.tree.map(own, tree)


def _is_not_from_orbax_threads(record: logging.LogRecord) -> bool:
    """Filters the tracebacks of Orbax's threads: `Checkpoints` reports a failed checkpoint once."""
    return not (record.levelno == logging.ERROR and "orbax" in record.pathname)
