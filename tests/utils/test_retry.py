"""utils/retry.py."""

from __future__ import annotations

import errno

import pytest

from pfcn_jax.utils import retry


def test_a_read_is_retried_unless_the_file_does_not_exist(monkeypatch):
    monkeypatch.setattr(retry, "_DELAYS", (0.0, 0.0, 0.0))
    asked = []

    def read(error, failures):
        def once():
            asked.append(error)
            if len(asked) <= failures:
                raise error
            return b"content"

        return once

    stale = OSError(errno.ESTALE, "Stale file handle")
    assert retry.retry_read(read(stale, 3)) == b"content" and len(asked) == 4
    asked.clear()
    with pytest.raises(OSError, match="Stale"):
        retry.retry_read(read(stale, 4))
    asked.clear()
    with pytest.raises(FileNotFoundError):
        retry.retry_read(read(FileNotFoundError("x"), 1))
    assert len(asked) == 1
