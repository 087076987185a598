"""What a program says to whoever started it. A log that cannot be written must not end the work that it tells about."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn, TextIO


def say(*lines: str, to: TextIO | None = None) -> None:
    """Prints lines at once, to stderr unless told otherwise; a full disk or a reader that has gone is no error."""
    stream = to or sys.stderr
    if stream is None or stream.closed:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)  # names in any script
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


def leave(status: int) -> NoReturn:
    """Ends the program with this status. (Where a stream cannot be written any more, Python would make it 120.)"""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
