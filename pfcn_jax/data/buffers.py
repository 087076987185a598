"""Memory for batches: in one process used again, between two processes shared."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from grain.multiprocessing import SharedMemoryArray
from jaxtyping import UInt8

from pfcn_jax.errors import UserError

Take = Callable[[Sequence[int], npt.DTypeLike], np.ndarray]  # shape and type -> an array

_POPULATE_WRITE = 23  # of madvise, Linux 5.14: all pages at once, and an error instead of a signal if there are none
_madvise = ctypes.CDLL(None, use_errno=True).madvise if sys.platform == "linux" else None


def _references_of_an_idle_buffer() -> int:
    """What `sys.getrefcount` says in the loop of `BufferPool._take` about a buffer that nobody else refers to."""
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


def shared_array(shape: Sequence[int], dtype: npt.DTypeLike) -> SharedMemoryArray:
    """Zeros that travel to another process as they are. Grain sends their name; who receives them frees them.

    All pages are there at once: one by one, as they are first written, they cost twice the time, and where the shared
    memory is full the process would die without a word.

    Raises:
      UserError: there is no room.
    """
    array = SharedMemoryArray(shape, dtype)
    if _madvise is None:
        return array
    failed = _madvise(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), _POPULATE_WRITE)
    if failed and ctypes.get_errno() in (errno.EFAULT, errno.ENOMEM):  # others: an older system does not know it
        array.unlink_on_del()
        raise UserError(
            f"no {array.nbytes / 1e6:.0f} MB of shared memory for a batch: make /dev/shm larger (a container: "
            "--shm-size=8g), or load without other processes (--config.data.workers=0)"
        )
    return array


@contextlib.contextmanager
def shared_arrays() -> Iterator[Take]:
    """Gives `shared_array`; what was taken is freed if the block fails, since then nobody will receive it."""
    taken: list[SharedMemoryArray] = []

    def take(shape: Sequence[int], dtype: npt.DTypeLike) -> SharedMemoryArray:
        taken.append(shared_array(shape, dtype))
        return taken[-1]

    try:
        yield take
    except BaseException:
        while taken:
            taken.pop().unlink_on_del()
        raise


class BufferPool:
    """Blocks of `size` bytes; a block is used again once no array refers to it any more.

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

    def take(self, shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
        """An array in an idle block, or in a new one, of at most `size` bytes. Its contents are arbitrary."""
        count = math.prod(shape) * np.dtype(dtype).itemsize
        return self._take()[:count].view(dtype).reshape(shape)

    def _take(self) -> UInt8[np.ndarray, " size"]:
        with self._lock:
            for block in self._blocks:
                if sys.getrefcount(block) == _IDLE:
                    return block.view()
            block = np.empty(self.size, np.uint8)
            if len(self._blocks) < self.limit:
                self._blocks.append(block)
            return block.view()
