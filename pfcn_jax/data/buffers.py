"""Memory for batches: what the C library keeps between images, and memory that worker processes share."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from grain.multiprocessing import SharedMemoryArray

from pfcn_jax.errors import UserError

Take = Callable[[Sequence[int], npt.DTypeLike], np.ndarray]  # shape and type -> an array

_POPULATE_WRITE = 23  # of madvise, Linux 5.14: all pages at once, and an error instead of a signal if there are none
_madvise = ctypes.CDLL(None, use_errno=True).madvise if sys.platform == "linux" else None


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of an image for the next one.

    glibc gives large blocks back to the system when they are freed, and takes new ones page by page; how large is what
    it learns from the largest block freed so far, of at most 32 MiB. So one of that size is freed here. Without effect
    (and harmless) where another allocator is in use.
    """
    np.empty((32 << 20) - (64 << 10), np.uint8)


def shared_array(shape: Sequence[int], dtype: npt.DTypeLike) -> SharedMemoryArray:
    """Zeros that travel to another process as they are. Grain sends their name; who receives them frees them.

    All pages are there at once: where the shared memory is full, the process would otherwise die of a signal, as it
    writes to the first page that is missing.

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
            "--shm-size=8g), or load without other processes (--config.data.workers=0)",
            code="shared-memory",
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
