"""Where a run's numbers go: a JSONL file, TensorBoard, and a progress display with losses, images/s and time left."""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import tensorboardX
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class MetricsWriter:
    """Appends one JSON line a step to `metrics.jsonl` and the same scalars to TensorBoard under `tensorboard/`."""

    def __init__(self, workdir: pathlib.Path):
        workdir.mkdir(parents=True, exist_ok=True)
        self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers that are not finite are written as null: the file stays valid JSON."""
        finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        for key, value in scalars.items():
            self._board.add_scalar(key, value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


class ProgressDisplay:
    """A live bar on a terminal; elsewhere one plain line for each update, so that logs stay readable."""

    def __init__(self, total: int, *, start: int = 0, label: str = "train"):
        self._quiet = jax.process_index() != 0  # of several processes the first one speaks for all
        self._live = sys.stderr.isatty() and not self._quiet
        self._total = total
        self._start, self._begin = start, time.monotonic()
        self._label = label
        if self._live:
            self._bar = Progress(
                TextColumn(f"[bold]{label}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total, completed=start)
            self._bar.start()

    def update(self, step: int, text: str) -> None:
        if self._live:
            self._bar.update(self._task, completed=step, description=text)
        if self._live or self._quiet:
            return
        spent = time.monotonic() - self._begin
        left = spent / max(step - self._start, 1) * max(self._total - step, 0)
        print(
            f"{self._label} {step}/{self._total}  {text}  {_clock(spent)} < {_clock(left)}", file=sys.stderr, flush=True
        )

    def close(self) -> None:
        if self._live:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
