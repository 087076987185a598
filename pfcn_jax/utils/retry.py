"""Retry a read that a file server could not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_DELAYS = (0.5, 2.0, 8.0)  # seconds


def retry_read(read: Callable[[], T]) -> T:
    """`read()`, retried after a delay on `OSError`; a file that does not exist or may not be read fails at once."""
    for seconds in _DELAYS:
        try:
            return read()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(seconds)
    return read()
