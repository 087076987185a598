"""Memory for batches that is used again."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
from jaxtyping import UInt8


def _references_of_an_idle_buffer() -> int:
    """What `sys.getrefcount` says in the loop of `BufferPool.take` about a buffer that nobody else refers to."""
    for buffer in [np.empty(1, np.uint8)]:
        return sys.getrefcount(buffer)
    raise AssertionError


_IDLE = _references_of_an_idle_buffer()


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of a picture for the next one.

    glibc gives large blocks back to the system when they are freed, and takes new ones page by page; how large is what
    it learns from the largest block freed so far, of at most 32 MiB. So one of that size is freed here. Without effect
    (and harmless) where another allocator is in use.
    """
    np.empty((32 << 20) - (64 << 10), np.uint8)


class BufferPool:
    """Blocks of `size` bytes; a block is given out again once no array refers to it any more.

    A batch of pictures takes tens of megabytes; fresh from the system each of its pages costs a fault and a clearing.
    Every view of a block (and a JAX array that shares its memory, or is still being copied from it) holds a reference,
    so a block in use is never touched.
    """

    def __init__(self, size: int, *, limit: int = 64):
        """No block exists yet; of more than `limit` in use at the same time the others are not kept."""
        self.size, self.limit = size, limit
        self._blocks: list[UInt8[np.ndarray, " size"]] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"size": self.size, "limit": self.limit}  # a worker process has its own blocks

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        """Blocks that are kept."""
        return len(self._blocks)

    def take(self) -> UInt8[np.ndarray, " size"]:
        """A view of an idle block, or of a new one. Its contents are arbitrary."""
        with self._lock:
            for block in self._blocks:
                if sys.getrefcount(block) == _IDLE:
                    return block.view()
            block = np.empty(self.size, np.uint8)
            if len(self._blocks) < self.limit:
                self._blocks.append(block)
            return block.view()
