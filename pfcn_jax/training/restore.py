"""How a run begins: its working directory, the state of its newest checkpoint, or a fresh one."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jax
from jax.sharding import Mesh

from pfcn_jax.checkpoints.format import CheckpointError, load_meta, load_run
from pfcn_jax.checkpoints.loading import initialize_from
from pfcn_jax.checkpoints.manager import Checkpoints
from pfcn_jax.config.schema import Config, TrainOptions, from_dict, to_json
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.pipeline import BatchIterator
from pfcn_jax.errors import ConfigError, TryAgain, UserError
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.state import TrainState
from pfcn_jax.parallel import distributed
from pfcn_jax.parallel.sharding import replicated
from pfcn_jax.training.state import check_same_state, create_state
from pfcn_jax.training.workdir import RunLock, check_room
from pfcn_jax.utils.atomic import write_text
from pfcn_jax.utils.stderr import print_lines


def check_division(train: TrainOptions) -> None:
    """Raises UserError unless every device gets the same number of pictures in every part of a step."""
    devices, parts = jax.device_count(), train.accumulate
    if train.batch_size % (devices * parts):
        of_parts = f" in {parts} parts each (config.train.accumulate)" if parts > 1 else ""
        raise UserError(
            f"config.train.batch_size: {train.batch_size} pictures do not divide over {devices} devices{of_parts}; "
            f"choose a multiple of {devices * parts}"
        )


def take_workdir(workdir: pathlib.Path) -> RunLock | None:
    """Process 0 takes the working directory for all; if it cannot, every process says so."""
    lock, problem, again = None, "", False
    if jax.process_index() == 0:
        try:
            lock = RunLock(workdir)
        except UserError as error:
            problem, again = str(error), isinstance(error, TryAgain)
    distributed.raise_together(problem, again=again)
    return lock


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """`config.json`, as the run was started last.

    Raises:
      UserError: it cannot be written.
    """
    try:
        write_text(workdir / "config.json", to_json(config) + "\n")
    except OSError as error:
        raise UserError(f"{workdir / 'config.json'}: cannot be written ({error.strerror})") from error


def begin(
    config: Config,
    model: PanopticFCN,
    mesh: Mesh,
    *,
    classes: ClassTable,
    checkpoints: Checkpoints,
    batches: BatchIterator,
) -> tuple[TrainState, dict[str, Any]]:
    """The state of the newest intact checkpoint and its counts, or a fresh one. `batches` go to its position.

    Raises:
      UserError: every checkpoint is damaged, the newest is of another run, or there is no room for more.
    """
    abstract = jax.eval_shape(lambda: create_state(config, model, mesh))
    step, problem = None, ""
    if jax.process_index() == 0:
        try:
            step, kept = checkpoints.newest_intact(), config.train.keep_latest + config.train.keep_best
            check_room(checkpoints.directory.parent, abstract, kept=kept, there=len(checkpoints.steps()))
        except (UserError, OSError) as error:
            if jax.process_count() == 1 and isinstance(error, UserError):
                raise
            problem = str(error)
    distributed.raise_together(problem)
    found = distributed.number_of_process_0(-1 if step is None else step)
    path = checkpoints.directory / str(found)
    if found < 0:
        return _fresh_state(config, model, mesh), {}
    distributed.raise_together("" if path.is_dir() else f"{path}: process {jax.process_index()} does not see it")
    sharding = replicated(mesh)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    meta = load_meta(path)
    check_same_state(from_dict(meta["config"]), config, str(path))
    difference = ClassTable.from_json(meta["classes"]).difference(classes)
    if difference:
        raise CheckpointError(f"{path}: other classes than those of the data ({difference}); take another workdir")
    weights, training = load_run(path, model=target.model, training=target.training)
    try:
        batches.set_state(meta["position"])
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return TrainState.from_items(weights, training), meta.get("counts", {})


def _fresh_state(config: Config, model: PanopticFCN, mesh: Mesh) -> TrainState:
    """Random parameters, or those that the config asks to start from.

    Raises:
      ConfigError: parts of the network would keep their random values, because they never learn.
    """
    train, network = config.train, config.model
    if not train.init_from:
        if train.fresh_heads:
            raise ConfigError("config.train.fresh_heads: without config.train.init_from everything is fresh")
        if network.freeze_at or network.backbone_norm == "frozen_bn":
            raise ConfigError(
                f"config.train.init_from is empty, but with model.freeze_at={network.freeze_at} and "
                f"model.backbone_norm={network.backbone_norm!r} parts of the backbone never learn: start from "
                "pretrained weights (--init-from; docs/training.md says where they are), or learn everything with "
                "--config.model.freeze_at=0 --config.model.backbone_norm=group_norm"
            )
        return create_state(config, model, mesh)
    state = create_state(config, model, mesh)
    variables = jax.device_get(state.variables)
    merged, notes = initialize_from(pathlib.Path(train.init_from), variables, config, fresh_heads=train.fresh_heads)
    if jax.process_index() == 0:
        print_lines(f"starting from {train.init_from}", *notes, to=sys.stdout)
    return create_state(config, model, mesh, merged)
