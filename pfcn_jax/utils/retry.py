"""Retries for reads from network file systems, whose errors often pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
DELAYS = (0.5, 2.0, 8.0)  # seconds before each retry
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def retry_read(
    read: Callable[[], T], *, delays: Sequence[float] = DELAYS, sleep: Callable[[float], None] = time.sleep
) -> T:
    """Returns `read()`; retries after transient OSErrors (a stale handle, an I/O error), once for each delay.

    Raises:
      OSError: a missing file or denied permission at once; any other error when the last retry fails.
    """
    for seconds in delays:
        try:
            return read()
        except _PERMANENT:
            raise
        except OSError:
            sleep(seconds)
    return read()
