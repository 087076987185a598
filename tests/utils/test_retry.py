"""Transient read errors are retried, permanent ones are not."""

from __future__ import annotations

import errno

import pytest

from pfcn_jax.utils.retry import DELAYS, retry_read


class Server:
    """A file server that fails for the first `failures` reads."""

    def __init__(self, error: OSError, failures: int):
        self.error, self.failures, self.reads = error, failures, 0

    def __call__(self) -> bytes:
        self.reads += 1
        if self.reads <= self.failures:
            raise self.error
        return b"content"


def test_transient_errors_are_retried_after_each_delay():
    server, slept = Server(OSError(errno.ESTALE, "Stale file handle"), len(DELAYS)), []
    assert retry_read(server, sleep=slept.append) == b"content"
    assert slept == list(DELAYS) and server.reads == len(DELAYS) + 1


def test_the_last_error_is_raised():
    server, slept = Server(OSError(errno.ESTALE, "Stale file handle"), 9), []
    with pytest.raises(OSError, match="Stale"):
        retry_read(server, delays=(1.0, 2.0), sleep=slept.append)
    assert slept == [1.0, 2.0] and server.reads == 3


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError])
def test_permanent_errors_are_raised_at_once(kind):
    server, slept = Server(kind("x"), 1), []
    with pytest.raises(kind):
        retry_read(server, sleep=slept.append)
    assert server.reads == 1 and not slept
