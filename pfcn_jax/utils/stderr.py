"""Messages to the terminal that never end the work: a full disk or a closed pipe is not an error here."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import NoReturn, TextIO


def print_lines(*lines: str, to: TextIO | None = None) -> None:
    """Prints lines and flushes, to stderr by default; ignores a stream that cannot be written."""
    stream = to or sys.stderr
    if stream is None or stream.closed:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)  # file names in any script
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


def print_any_script() -> None:
    """Makes `print` write what the terminal's encoding lacks as an escape, instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def exit_with(status: int) -> NoReturn:
    """Exits with this status. (If a stream cannot be flushed at exit, Python would return 120 instead.)"""
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
