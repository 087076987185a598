"""Metrics of a run: a JSONL file, TensorBoard event files, and the numbers of the progress display."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import BinaryIO

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from pfcn_jax.utils.atomic import write_bytes
from pfcn_jax.utils.stderr import print_lines

Entry = tuple[int, dict[str, float]]
_MAX_WAITING = 100_000  # entries in memory while the disk is full


class MetricsWriter:
    """Appends one JSON line a step to `metrics.jsonl` and the same scalars to TensorBoard under `tensorboard/`.

    Lines that cannot be written (the disk is full) are reported, kept in memory and retried with the next line.

    Attributes:
      failures: number of failed writes.
    """

    def __init__(self, workdir: pathlib.Path, *, start: int = 0, scored: bool = True):
        """Resumes after step `start`: drops lines of later steps, which a killed run may have written.

        Args:
          scored: keep the evaluation of step `start`; False: it is about to be repeated.
        """
        workdir.mkdir(parents=True, exist_ok=True)
        self.failures = 0
        _rewind(workdir / "metrics.jsonl", start, scored)
        self._sinks: list[_Lines | _Board] = [_Lines(workdir / "metrics.jsonl"), _Board(workdir / "tensorboard", start)]
        self._waiting: list[list[Entry]] = [[] for _ in self._sinks]

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the metrics of a step; non-finite numbers become null, so that the file stays valid JSON."""
        for waiting in self._waiting:
            waiting.append((step, dict(scalars)))
            del waiting[:-_MAX_WAITING]
        self._flush()

    def sync(self) -> None:
        """Flushes to the disk; call it before a checkpoint, after which these steps are never logged again."""
        for sink in self._sinks:
            with contextlib.suppress(OSError):
                sink.sync()

    def close(self) -> None:
        """Retries what could not be written, and closes the files."""
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
                    f"{sink.path}: cannot be written ({error.strerror}); {len(waiting)} lines are kept for a retry"
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
    """TensorBoard's event files, written synchronously: tensorboardX's writer thread ends on a full disk, and training
    would then block on its queue forever."""

    def __init__(self, path: pathlib.Path, start: int):
        self.path, self._start = path, start
        self._records: RecordWriter | None = None
        self._restarted = False

    def write(self, entries: list[Entry]) -> None:
        """Appends all of them; after an OSError the next call opens a new file: this one may end inside a record."""
        try:
            records = self._records or self._open()
            for step, scalars in entries:
                values = [Summary.Value(tag=key, simple_value=value) for key, value in scalars.items()]
                _add(records, Event(step=step, summary=Summary(value=values)))
            records.flush()
            self._restarted = True
        except OSError:
            self.close()
            raise

    def sync(self) -> None:
        """Does nothing: `write` has flushed."""

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
        if not self._restarted:  # TensorBoard then hides later steps of earlier files
            _add(self._records, Event(step=self._start + 1, session_log=SessionLog(status=SessionLog.START)))
        return self._records


def _add(records: RecordWriter, event: Event) -> None:
    event.wall_time = time.time()
    records.write(event.SerializeToString())


def _json_line(step: int, scalars: Mapping[str, float]) -> bytes:
    finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
    return (json.dumps({"step": step, **finite}) + "\n").encode()


def _rewind(path: pathlib.Path, start: int, scored: bool) -> None:
    """Keeps complete lines of steps up to `start`; replaces the file atomically."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(line for line in content.splitlines(keepends=True) if _is_kept(line, start, scored))
    if kept != content:
        write_bytes(path, kept)


def _is_kept(line: bytes, start: int, scored: bool) -> bool:
    try:
        values = json.loads(line)
        step = int(values["step"])
    except (ValueError, KeyError, TypeError):
        return False
    again = step == start and not scored and any(key.startswith("eval/") for key in values)
    return line.endswith(b"\n") and step <= start and not again


class StepTimer:
    """Measures images/s and the time that a step waits for its input, lap by lap."""

    def __init__(self, batch_size: int, step: int, *, clock: Callable[[], float] = time.monotonic):
        """Starts a lap after `step`.

        Args:
          clock: current time in seconds.
        """
        self._batch_size, self._clock = batch_size, clock
        self.restart(step, 0.0)

    def restart(self, step: int, waited: float) -> None:
        """Starts a lap after `step`; the time before it (an evaluation) is not counted."""
        self._step, self._waited, self._time = step, waited, self._clock()

    def lap(self, step: int, waited: float) -> dict[str, float]:
        """Ends the lap after `step`, starts the next one, and returns the metrics of the lap.

        Args:
          waited: seconds that all steps so far have waited.
        """
        done, spent = max(step - self._step, 1), max(self._clock() - self._time, 1e-9)
        wait = waited - self._waited
        self.restart(step, waited)
        return {
            "images_per_second": done * self._batch_size / spent,
            "step_seconds": spent / done,
            "input_wait_seconds": wait / done,
        }


def format_losses(values: Mapping[str, float]) -> str:
    """Losses, speed and input wait as one line for the progress display."""
    names = ("loss", "loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")
    losses = [f"{name} {values[name]:.3f}" for name in names]
    waited = values["input_wait_seconds"] / max(values["step_seconds"], 1e-9)
    return "  ".join([*losses, f"{values['images_per_second']:.1f} images/s", f"{waited:.0%} waiting for input"])
