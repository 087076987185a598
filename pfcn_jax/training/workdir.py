"""Checks of the working directory before anything is computed: lock, write access, free space."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import pathlib
import shutil
import socket
import time
from typing import Any

import jax

from pfcn_jax.errors import TryAgain, UserError

PyTree = Any
LOCK = "lock"


class RunLock:
    """Exclusive lock of a working directory until `release`, or until the process ends, however it ends.

    The operating system holds the lock, not the file: a stale file locks nothing. Worker processes do not inherit it.
    (It is a POSIX lock: this process would lose it by opening and closing the file again.)
    """

    def __init__(self, workdir: pathlib.Path):
        """Creates the directory if necessary, and locks it.

        Raises:
          UserError: the directory cannot be created or written, or another process holds it (the message names it).
          TryAgain: a process of another machine holds it; if that has ended, most file servers notice after a while.
        """
        self._file: int | None = None
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _probe(workdir)
            self._file = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"{workdir}: cannot be written ({error.strerror}); choose another --workdir", code="disk"
            ) from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                self.release()
                raise UserError(
                    f"{workdir}: its file system has no locks ({error.strerror}), so nothing would keep a second "
                    "process away; choose another --workdir",
                    code="disk",
                ) from error
            owner = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            self.release()
            text = f"{workdir}: in use by {owner}; a run has one process (or one job) at a time"
            if _boot() in owner:
                raise UserError(text, code="in-use") from error
            gone = f"if that machine is gone and this stays so, delete {workdir / LOCK}"  # NFSv3 never notices
            raise TryAgain(f"{text}; {gone}") from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):  # for others to read; the lock itself is held
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()} since {since}, {_boot()}\n".encode())

    def release(self) -> None:
        """Unlocks the directory; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def cache_compiled(workdir: pathlib.Path) -> None:
    """Caches compiled programs in the working directory, unless JAX has another cache directory already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))


def _boot() -> str:
    """Identifies this boot of this machine; host names repeat (in a cluster of containers they always do)."""
    try:
        return f"boot {pathlib.Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}"
    except OSError:
        return f"host {socket.gethostname()}"


def check_free_space(directory: pathlib.Path, state: PyTree, *, kept: int, existing: int) -> None:
    """Checks that the disk has room for the checkpoints of a run.

    Args:
      state: content of a checkpoint, or its shapes and dtypes; counted uncompressed, because weights hardly compress.
      kept: checkpoints that a run keeps.
      existing: checkpoints that are there already.

    Raises:
      UserError: the free space is too small.
    """
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = (max(kept - existing, 0) + 1) * one  # a checkpoint is written before an old one is deleted
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory}: {_size(free)} free, the checkpoints need {_size(needed)} ({_size(one)} each; "
            "config.train.keep_latest and keep_best say how many stay)",
            code="disk",
        )


def _probe(directory: pathlib.Path) -> None:
    """Raises OSError unless files can be created, written, renamed and deleted here."""
    path = directory / f".probe-{os.getpid()}"
    try:
        path.write_bytes(b"x" * 4096)
        path.replace(path.with_suffix(".renamed"))
    finally:
        for left in (path, path.with_suffix(".renamed")):
            left.unlink(missing_ok=True)


def _size(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
