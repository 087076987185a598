"""What a program says to whoever started it. A log that cannot be written must not end the work that it tells about."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO


def say(*lines: str, to: TextIO | None = None) -> None:
    """Prints lines at once, to stderr unless told otherwise; a full disk or a reader that has gone is no error."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(*lines, sep="\n", file=to or sys.stderr, flush=True)


def keep_exit_status() -> None:
    """Before the program ends: what cannot be written any more is dropped. (Python would end with status 120.)"""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except ValueError:
            continue
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
