"""What a training step carries, and where it lives: replicated over a mesh whose one axis splits the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from pfcn_jax.config.schema import Config, ConfigError, ModelConfig
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.models.panoptic_fcn import PanopticFCN, init_variables
from pfcn_jax.optim.rules import check_paths, make_optimizer

PyTree = Any


@struct.dataclass
class TrainState:
    """Everything that a step changes, and the frozen statistics that go with it."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree | None = None  # moving average of `params`; None: config.train.ema_decay is 0

    @property
    def variables(self) -> dict[str, PyTree]:
        """What is trained, as the network takes it."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def model(self) -> dict[str, PyTree]:
        """What is evaluated, drawn and handed on: the variables, with averaged parameters where there are any."""
        return {"params": self.params if self.average is None else self.average, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, PyTree]:
        """What a run needs besides `model` to go on."""
        rest = {"opt_state": self.opt_state, "step": self.step}
        return rest if self.average is None else {**rest, "params": self.params}

    @classmethod
    def from_items(cls, model: PyTree, training: PyTree) -> TrainState:
        """The state whose `model` and `training` these are."""
        average = model["params"] if "params" in training else None
        params = training.get("params", model["params"])
        return cls(training["step"], params, model["batch_stats"], training["opt_state"], average)


def build_model(config: ModelConfig, classes: ClassTable) -> PanopticFCN:
    """The network of a config, with heads for these classes.

    Raises:
      ConfigError: the config describes no network, or no class is a thing.
    """
    if classes.num_things == 0:
        raise ConfigError("none of the classes is a thing: at least one must be countable (isthing: 1) to be learnt so")
    keywords = {key: getattr(config, key) for key in config.__dataclass_fields__}
    keywords["dtype"] = jnp.dtype(config.dtype)
    model = PanopticFCN(num_things=classes.num_things, num_stuff=classes.num_stuff, **keywords)
    try:
        jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
    return model


def abstract_variables(model: PanopticFCN) -> dict[str, PyTree]:
    """Shapes and dtypes of the network's variables."""
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def build_optimizer(config: Config, model: PanopticFCN) -> optax.GradientTransformation:
    """The update rule of a run.

    Raises:
      ConfigError: `config.optim` names paths of parameters that the model does not have, or that do nothing.
    """
    optim = config.optim
    if optim.frozen or optim.lr_multipliers:
        check_paths(optim, abstract_variables(model)["params"], frozen=model.frozen_paths())
    return make_optimizer(
        optim,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        frozen=model.frozen_paths() + optim.frozen,
    )


def data_mesh() -> Mesh:
    """All devices of all processes in one axis, "data", process by process.

    So row r of a batch is on process r // (rows of a process), as the plan of the batches says. (`jax.make_mesh` would
    follow the torus of a TPU slice, where neighbours belong to different machines.)
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Pictures are split over the mesh along their first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process' rows of a batch (NumPy) -> global arrays over the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def put_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
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


def check_same_state(before: Config, now: Config, where: str) -> None:
    """A stored state continues only under a config that makes the same kind of state.

    Raises:
      ConfigError: naming the key that has changed between `before`, of the checkpoint at `where`, and `now`.
    """
    keys: list[tuple[str, Any, Any]] = [
        ("optim.name", before.optim.name, now.optim.name),
        ("optim.frozen", before.optim.frozen, now.optim.frozen),
        ("model.freeze_at", before.model.freeze_at, now.model.freeze_at),
    ]
    changed = [entry for entry in keys if entry[1] != entry[2]]
    if bool(before.train.ema_decay) != bool(now.train.ema_decay):
        changed.append(("train.ema_decay", before.train.ema_decay, now.train.ema_decay))
    if changed:
        key, old, new = changed[0]
        raise ConfigError(
            f"config.{key} is {new!r}, the run so far had {old!r}: its state does not fit; keep {old!r}, or start "
            f"another workdir with --init-from {where}"
        )


def create_state(config: Config, model: PanopticFCN, mesh: Mesh, variables: PyTree | None = None) -> TrainState:
    """A fresh state on the mesh: random parameters by `config.seed`, or the given ones."""
    optimizer = build_optimizer(config, model)

    def create(start: PyTree) -> TrainState:
        if start is None:
            start = init_variables(model, jax.random.key(config.seed))
        params = start["params"]
        stats = start.get("batch_stats", {})
        average = jax.tree.map(jnp.copy, params) if config.train.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params), average)

    start = None if variables is None else put_replicated(variables, mesh)
    return jax.jit(create, out_shardings=replicated(mesh))(start)
