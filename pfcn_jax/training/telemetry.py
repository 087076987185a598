"""Where a run's numbers go: a JSONL file, TensorBoard, and a progress display with losses, images/s and time left."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import BinaryIO

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from pfcn_jax.utils.atomic import write_bytes
from pfcn_jax.utils.stderr import print_lines

Entry = tuple[int, dict[str, float]]
_MOST_WAITING = 100_000  # entries in memory while the disk is full


class MetricsWriter:
    """Appends one JSON line a step to `metrics.jsonl` and the same scalars to TensorBoard under `tensorboard/`.

    What cannot be written (the disk is full) is reported, waits in memory and is tried again with the next line.

    Attributes:
      failures: writes that failed.
    """

    def __init__(self, workdir: pathlib.Path, *, start: int = 0, scored: bool = True):
        """Goes on after step `start`: what a run that was killed had written of later steps is taken out.

        Args:
          scored: the evaluation of step `start` stays; False: it is about to be written again.
        """
        workdir.mkdir(parents=True, exist_ok=True)
        self.failures = 0
        _rewind(workdir / "metrics.jsonl", start, scored)
        self._sinks: list[_Lines | _Board] = [_Lines(workdir / "metrics.jsonl"), _Board(workdir / "tensorboard", start)]
        self._waiting: list[list[Entry]] = [[] for _ in self._sinks]

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers that are not finite are written as null: the file stays valid JSON."""
        for waiting in self._waiting:
            waiting.append((step, dict(scalars)))
            del waiting[:-_MOST_WAITING]
        self._flush()

    def sync(self) -> None:
        """What was written is on the disk, not only on its way: before a checkpoint, whose steps are not repeated."""
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.sync()

    def close(self) -> None:
        """Writes what waits, if that can be written now."""
        self._flush()
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.close()

    def _flush(self) -> None:
        for sink, waiting in zip(self._sinks, self._waiting):
            if not waiting:
                continue
            try:
                sink.write(waiting)
                waiting.clear()
            except OSError as error:
                self.failures += 1
                print_lines(
                    f"{sink.path}: cannot be written ({error.strerror}); {len(waiting)} lines wait, training goes on"
                )


class _Lines:
    """A file of JSON lines that holds whole lines only."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file: BinaryIO | None = None

    def write(self, entries: list[Entry]) -> None:
        """Appends all of them or, with an OSError, none."""
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        text = b"".join(_json_line(step, scalars) for step, scalars in entries)
        try:
            written = self._file.write(text)
            if written != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._file.truncate(size)
            raise

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _Board:
    """TensorBoard's event files. Written here and now: tensorboardX's own thread dies of a full disk, and the training
    that goes on feeding it then waits for ever."""

    def __init__(self, path: pathlib.Path, start: int):
        self.path, self._start = path, start
        self._records: RecordWriter | None = None
        self._begun = False

    def write(self, entries: list[Entry]) -> None:
        """Appends all of them; after an OSError the next call begins a new file, since this one may end anywhere."""
        try:
            records = self._records or self._open()
            for step, scalars in entries:
                values = [Summary.Value(tag=key, simple_value=value) for key, value in scalars.items()]
                _add(records, Event(step=step, summary=Summary(value=values)))
            records.flush()
            self._begun = True
        except OSError:
            self.close()
            raise

    def sync(self) -> None:
        """Nothing: `flush` has done it."""

    def close(self) -> None:
        if self._records is not None:
            with contextlib.suppress(OSError):
                self._records.close()
            self._records = None

    def _open(self) -> RecordWriter:
        self.path.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(self.path / name))
        _add(self._records, Event(file_version="brain.Event:2"))
        if not self._begun:  # what an earlier process wrote of later steps is not to be shown
            _add(self._records, Event(step=self._start + 1, session_log=SessionLog(status=SessionLog.START)))
        return self._records


def _add(records: RecordWriter, event: Event) -> None:
    event.wall_time = time.time()
    records.write(event.SerializeToString())


def _json_line(step: int, scalars: Mapping[str, float]) -> bytes:
    finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
    return (json.dumps({"step": step, **finite}) + "\n").encode()


def _rewind(path: pathlib.Path, start: int, scored: bool) -> None:
    """Keeps the whole lines of steps up to `start`; the file is replaced, so that it is there at any moment."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _stays(line, start, scored))
    if kept != content:
        write_bytes(path, kept)


def _stays(line: bytes, start: int, scored: bool) -> bool:
    try:
        values = json.loads(line)
        step = int(values["step"])
    except (ValueError, KeyError, TypeError):
        return False
    again = step == start and not scored and any(key.startswith("eval/") for key in values)
    return line.endswith(b"\n") and step <= start and not again


class StepTimer:
    """Images/s since the last lap, and how long a step waited for its pictures."""

    def __init__(self, batch_size: int, step: int):
        self._batch_size = batch_size
        self.restart(step, 0.0)

    def restart(self, step: int, waited: float) -> None:
        """Begins a lap at `step`; what came before (an evaluation) counts for nothing."""
        self._step, self._waited, self._time = step, waited, time.monotonic()

    def lap(self, step: int, waited: float) -> dict[str, float]:
        """Ends a lap at `step` and begins the next: what the metrics say about its steps.

        Args:
          waited: seconds that all steps so far have waited.
        """
        done, spent = max(step - self._step, 1), max(time.monotonic() - self._time, 1e-9)
        wait = waited - self._waited
        self.restart(step, waited)
        return {
            "images_per_second": done * self._batch_size / spent,
            "step_seconds": spent / done,
            "input_wait_seconds": wait / done,
        }
