"""Agreement between the processes of one run. With a single process every function here returns at once.

Each process must call these functions at the same places in the same order: they wait for one another.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Int

from pfcn_jax.errors import TryAgain, UserError
from pfcn_jax.parallel.sharding import shard_batch

_MESSAGE_BYTES = 2000


def raise_together(problem: UserError | None) -> None:
    """Raises on every process if any process has a problem, so that none waits for one that has ended.

    Args:
      problem: None if this process has none.

    Raises:
      UserError, TryAgain: with message and code of the first process that has one.
    """
    if jax.process_count() == 1:
        if problem:
            raise problem
        return
    message = np.zeros(_MESSAGE_BYTES, np.uint8)
    data = _encode(problem).encode()[:_MESSAGE_BYTES] if problem else b""
    message[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(message).reshape(-1, _MESSAGE_BYTES)
    text = next((text for row in rows if (text := row.tobytes().rstrip(b"\0").decode(errors="ignore"))), "")
    if text:
        raise _decode(text) from problem


def _encode(error: UserError) -> str:
    """Class, code and message, one a line."""
    return f"{'again' if isinstance(error, TryAgain) else ''}\n{error.code}\n{error}"


def _decode(text: str) -> UserError:
    again, code, message = text.split("\n", maxsplit=2)
    return (TryAgain if again else UserError)(message, code=code)


def number_of_process_0(value: int) -> int:
    """Returns the value that process 0 passes, on every process (int32)."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


class StopFlags:
    """Carries a stop request to the other processes: one flag a device, an input of the compiled step.

    The step returns the maximum over all devices, so every process learns of the request after the same step. A single
    process needs no flag: it reads its own request.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._flags: dict[bool, jax.Array] = {}  # at most two arrays, placed once

    def __call__(self, requested: bool) -> Int[Array, " devices"]:
        """Flags of this process' devices, as a global array over the mesh."""
        requested = requested and jax.process_count() > 1
        if requested not in self._flags:
            rows = np.full(jax.local_device_count(), requested, np.int32)
            self._flags[requested] = shard_batch(rows, self._mesh)
        return self._flags[requested]
