"""A run that is asked to stop: SIGTERM and SIGINT end it after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

_SAME_WISH_SECONDS = 1.0  # one Ctrl-C may arrive twice: from the terminal, and from a program in between


class StopRequest:
    """Within its `with` block SIGTERM and SIGINT only set `signal_name`; a second SIGINT has its usual effect.

    Attributes:
      signal_name: "" until one came.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._time = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only there handlers can be set
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: set by other code than Python's, as the one that `jax.distributed` has for SIGTERM
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.signal_name:
            self.signal_name, self._time = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._time > _SAME_WISH_SECONDS:
            raise KeyboardInterrupt
