"""Accumulators as bytes, to travel between hosts.

JAX without 64-bit mode gathers int64 as int32 and float64 as float32, without a word. Bytes arrive as they left.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8


def pack(arrays: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, " n"]:
    """The arrays of an accumulator's `to_arrays()` as one vector of bytes; its length differs from host to host."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(arrays))
    return np.frombuffer(buffer.getvalue(), np.uint8)


def unpack(data: UInt8[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """The arrays again. `data` must have the length that `pack` gave it."""
    with np.load(io.BytesIO(np.asarray(data, np.uint8).tobytes()), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
