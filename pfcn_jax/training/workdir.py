"""The working directory of a run: one process at a time, and it can be written before anything is computed."""

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
    """A working directory that belongs to this process until `release`, or until the process is gone, however it ends.

    The system holds the lock, not the file: a file that is left behind locks nothing. Worker processes do not inherit
    it. (It is a POSIX lock: this process would lose it by opening and closing the file once more.)
    """

    def __init__(self, workdir: pathlib.Path):
        """Makes the directory if need be, and takes it.

        Raises:
          UserError: the directory cannot be made or written, or another process has it (it is named).
          TryAgain: a process of another machine has it; if that is gone, most file servers notice after a while.
        """
        self._file: int | None = None
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            _probe(workdir)
            self._file = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{workdir}: cannot be written ({error.strerror}); choose another --workdir") from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                self.release()
                raise UserError(
                    f"{workdir}: its file system has no locks ({error.strerror}), so nothing would keep a second "
                    "process away; choose another --workdir"
                ) from error
            owner = os.read(self._file, 200).decode(errors="replace").strip() or "another process"
            self.release()
            text = f"{workdir}: in use by {owner}; a run has one process (or one job) at a time"
            if _boot() in owner:
                raise UserError(text) from error
            gone = f"if that machine is gone and this stays so, delete {workdir / LOCK}"  # NFSv3 never notices
            raise TryAgain(f"{text}; {gone}") from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):  # for others to read; the lock itself is held
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()} since {since}, {_boot()}\n".encode())

    def release(self) -> None:
        """Gives the directory back; again is harmless."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def keep_compiled(workdir: pathlib.Path) -> None:
    """Compiled programs stay in the working directory, for the next start, unless JAX has been told another place."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))


def _boot() -> str:
    """This machine since it was started; names of machines come again (in a cluster of containers they always do)."""
    try:
        return f"boot {pathlib.Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}"
    except OSError:
        return f"host {socket.gethostname()}"


def check_room(directory: pathlib.Path, state: PyTree, *, kept: int, there: int) -> None:
    """Before training: is there room for the checkpoints?

    Args:
      state: what a checkpoint holds, or its shapes and dtypes. Its arrays are counted in full: they hardly compress.
      kept: checkpoints that a run keeps.
      there: those that lie there already.

    Raises:
      UserError: there is not.
    """
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = (max(kept - there, 0) + 1) * one  # and the one that is being written before another one goes
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory}: {_size(free)} free, the checkpoints need {_size(needed)} ({_size(one)} each; "
            "config.train.keep_latest and keep_best say how many stay)"
        )


def _probe(directory: pathlib.Path) -> None:
    """Raises OSError unless files can be made, filled, renamed and removed here."""
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
