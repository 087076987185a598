"""Mesh of all devices: its one axis shards the batch; everything else is replicated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns all devices of all processes on one axis, "data", process by process.

    So row r of a batch is on process r // (rows of a process), as the batch plan assumes. (`jax.make_mesh` would follow
    the torus of a TPU slice, where neighbors belong to different machines.)

    Args:
      devices: other devices, as those of a slice that is only compiled for; None: this program's.
    """
    ordered = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def this_process() -> tuple[int, int]:
    """Returns (index of this process, number of processes)."""
    return jax.process_index(), jax.process_count()


def whole_rows(batch_size: int) -> int:
    """Rounds a batch size up to a multiple of the number of devices."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shards the first axis, the images of a batch, over the mesh."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Makes global arrays over the mesh from this process' rows of a batch (NumPy)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Makes fully replicated global arrays from the same tree on every process.

    Arrays that only this process holds are copied through the host: a backend may not move them between processes.
    """
    sharding = replicated(mesh)

    def place(leaf: Any) -> jax.Array:
        if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, tree)


def split_batch(batch: PyTree, parts: int, mesh: Mesh | None) -> PyTree:
    """Reshapes [B, ...] to [parts, B / parts, ...] on each device, so that no image moves between devices."""

    def split(batch: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:]), batch)

    if mesh is None:
        return split(batch)
    return jax.shard_map(split, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(None, "data"))(batch)


def local_row(tree: PyTree, row: int) -> PyTree:
    """Copies row `row` of this process' part of batched arrays to NumPy, and only that row."""

    def pick(leaf: jax.Array) -> np.ndarray:
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        rows = shards[0].data.shape[0]
        return np.asarray(shards[row // rows].data[row % rows])

    return jax.tree.map(pick, tree)
