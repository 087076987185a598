"""The only file that knows Ray: shards go to a pool of workers, one for each accelerator; the dead are replaced."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pfcn_jax.apps.bulk.worker import Job, Segmenter
from pfcn_jax.errors import UserError

ACCELERATORS = ("cpu", "gpu", "tpu")
_OBJECT_STORE_BYTES = 256 * 2**20  # names of images alone pass through it
_ANSWER_SECONDS = 10
_LOOPBACK = ("127.0.0.1", "::1")
_DEATHS_AT_START = 3  # workers that die one after the other before the model is loaded: then the run ends


def require_ray() -> None:
    """Raises UserError if Ray Data is not installed."""
    missing = [name for name in ("ray", "pandas") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"`bulk` needs Ray Data ({' and '.join(missing)} not installed): pip install -r requirements-bulk.txt"
        )


class Pool(NamedTuple):
    """Accelerator and number of the workers."""

    accelerator: str  # cpu, gpu or tpu
    workers: int


@contextlib.contextmanager
def started(address: str, workers: int, accelerator: str) -> Iterator[Pool]:
    """Ray, on this computer alone or as a client of a running cluster; shut down at the end.

    Args:
      address: of a running cluster, or `auto`; empty: start one here that talks on the loopback alone.
      workers: how many, 0: one for each accelerator; without accelerators one for every four cores.
      accelerator: `auto`, cpu, gpu or tpu.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not address:
        # Ray's own way to stay on the loopback; an address of 127.0.0.1 it would resolve to that of the network.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        _check_reachable(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(f"--address {address}: {error}") from error
    else:
        cores = max(workers, os.cpu_count() or 1)  # what Ray counts, not what there is: CPU workers always fit
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **common,
        )
    try:
        if not address and (node := ray.util.get_node_ip_address()) not in _LOOPBACK:
            raise UserError(f"this version of Ray ({ray.__version__}) listens on {node}; install requirements-bulk.txt")
        yield _choose(ray.cluster_resources(), workers, accelerator)
    finally:
        ray.shutdown()


def segment(job: Job, shards: Sequence[Sequence[str]], workers: int) -> Iterator[list[tuple[str, str]]]:
    """Gives the shards to workers; yields (name, error) of each shard's images as it is done.

    Ray starts a new worker for one that died and gives it the shard again; `Segmenter` sees to it that this ends.
    """
    import pyarrow as pa
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = _DEATHS_AT_START
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say is raised, too
    needs: dict[str, Any] = {"num_cpus": 1}
    if job.accelerator == "gpu":
        needs["num_gpus"] = 1
    elif job.accelerator == "tpu":
        needs["resources"] = {"TPU": 1}
    tables = [pa.table({"name": pa.array(shard, pa.string())}) for shard in shards]
    dataset = ray.data.from_blocks(tables).map_batches(
        RayWorker,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(tables)), max_tasks_in_flight_per_actor=2),
        batch_size=None,  # a block, which is a shard
        batch_format="pyarrow",
        **needs,
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield list(zip(table["name"].to_pylist(), table["error"].to_pylist()))


class RayWorker:
    """A `Segmenter` as Ray Data wants it: tables in, tables out."""

    def __init__(self, job: Job):
        self._segmenter = Segmenter(job)

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        outcomes = self._segmenter(table["name"].to_pylist())
        names, errors = ([outcome[column] for outcome in outcomes] for column in (0, 1))
        return pa.table({"name": pa.array(names, pa.string()), "error": pa.array(errors, pa.string())})


def _check_reachable(address: str) -> None:
    """Ray itself tries for many minutes, also where nobody listens."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # `auto`, or another of Ray's forms
        return
    try:
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from error


def _choose(resources: dict[str, float], workers: int, accelerator: str) -> Pool:
    """Accelerator and number of workers, from the resources that Ray reports."""
    there = {kind: int(resources.get(kind.upper(), 0)) for kind in ACCELERATORS}
    if accelerator == "auto":
        accelerator = "tpu" if there["tpu"] else "gpu" if there["gpu"] else "cpu"
    if not there[accelerator]:
        raise UserError(f"--accelerator {accelerator}: Ray sees none here")
    most = there[accelerator]
    if workers > most:
        raise UserError(f"--workers {workers}: Ray sees {most} {accelerator.upper()}s; each worker takes one")
    return Pool(accelerator, workers or (max(1, most // 4) if accelerator == "cpu" else most))
