"""The mesh of all devices: its one axis splits the batch, everything else is replicated."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any


def data_mesh() -> Mesh:
    """All devices of all processes in one axis, "data", process by process.

    So row r of a batch is on process r // (rows of a process), as the plan of the batches says. (`jax.make_mesh` would
    follow the torus of a TPU slice, where neighbours belong to different machines.)
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def this_process() -> tuple[int, int]:
    """(index, number) of this process among those that run the program together."""
    return jax.process_index(), jax.process_count()


def whole_rows(batch_size: int) -> int:
    """The batch size rounded up to a multiple of all devices."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Pictures are split over the mesh along their first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process' rows of a batch (NumPy) -> global arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The same tree on every process -> global arrays that every device of the mesh holds whole.

    What a process has loaded for itself goes through the host: a backend may not move arrays between processes.
    """
    sharding = replicated(mesh)

    def put(leaf: Any) -> jax.Array:
        if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree)


def split_batch(batch: PyTree, parts: int, mesh: Mesh | None) -> PyTree:
    """[B, ...] -> [parts, B / parts, ...]. Every device cuts its own rows: no picture moves."""

    def cut(batch: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:]), batch)

    if mesh is None:
        return cut(batch)
    return jax.shard_map(cut, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(None, "data"))(batch)


def local_row(tree: PyTree, row: int) -> PyTree:
    """Row `row` of this process' part of batched arrays, as NumPy; only that row is copied from its device."""

    def pick(leaf: jax.Array) -> np.ndarray:
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        rows = shards[0].data.shape[0]
        return np.asarray(shards[row // rows].data[row % rows])

    return jax.tree.map(pick, tree)
