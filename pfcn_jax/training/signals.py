"""Stop requests: SIGTERM and SIGINT end a run after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

_DUPLICATE_SECONDS = 1.0  # one Ctrl-C may arrive twice: from the terminal and from a program in between


class StopRequest:
    """Records SIGTERM and SIGINT while its `with` block runs; it is true after the first signal.

    A second SIGINT raises KeyboardInterrupt.

    Attributes:
      signal_name: name of the first signal; "" before it.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._time = 0.0
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not set by Python, such as jax.distributed's for SIGTERM
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous = {}

    def _record(self, number: int, _: FrameType | None) -> None:
        if not self.signal_name:
            self.signal_name, self._time = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._time > _DUPLICATE_SECONDS:
            raise KeyboardInterrupt
