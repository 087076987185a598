"""A progress display for the terminal, and plain lines for a log."""

from __future__ import annotations

import contextlib
import sys
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pfcn_jax.utils.stderr import print_lines


class ProgressDisplay:
    """Shows a live bar on a terminal; elsewhere prints one plain line per update, so that logs stay readable."""

    def __init__(self, total: int, *, start: int = 0, label: str = "train"):
        self._quiet = jax.process_index() != 0  # process 0 reports for all
        self._live = sys.stderr.isatty() and not self._quiet
        self._total = total
        self._start, self._start_time = start, time.monotonic()
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
        """Shows the progress after `step`."""
        if self._live:
            with contextlib.suppress(OSError):  # the terminal has gone
                self._bar.update(self._task, completed=step, description=text)
        if self._live or self._quiet:
            return
        spent = time.monotonic() - self._start_time
        left = spent / max(step - self._start, 1) * max(self._total - step, 0)
        print_lines(f"{self._label} {step}/{self._total}  {text}  {_clock(spent)} < {_clock(left)}")

    def close(self) -> None:
        if self._live:
            with contextlib.suppress(OSError):
                self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
