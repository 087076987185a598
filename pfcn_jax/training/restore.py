"""Start of a run: locks its working directory, and restores the newest checkpoint or initializes a state."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from pfcn_jax.checkpoints.format import CheckpointError, load_meta, load_run
from pfcn_jax.checkpoints.loading import initialize_from
from pfcn_jax.checkpoints.manager import Checkpoints
from pfcn_jax.config.schema import Config, TrainOptions, from_dict, to_json
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.pipeline import BatchIterator
from pfcn_jax.errors import ConfigError, UserError
from pfcn_jax.optim.state import TrainState
from pfcn_jax.parallel.protocol import number_of_process_0, raise_together
from pfcn_jax.parallel.sharding import replicated
from pfcn_jax.training.state import check_same_state
from pfcn_jax.training.workdir import RunLock, check_free_space
from pfcn_jax.utils.atomic import write_text
from pfcn_jax.utils.stderr import print_lines


def check_batch_size(train: TrainOptions) -> None:
    """Raises UserError unless every device gets the same number of images in every part of a step."""
    devices, parts = jax.device_count(), train.accumulate
    if train.batch_size % (devices * parts):
        of_parts = f" in {parts} parts each (config.train.accumulate)" if parts > 1 else ""
        raise UserError(
            f"config.train.batch_size: {train.batch_size} images do not divide over {devices} devices{of_parts}; "
            f"choose a multiple of {devices * parts}"
        )


def lock_workdir(workdir: pathlib.Path) -> RunLock | None:
    """Locks the working directory by process 0 (elsewhere: None); an error there is raised on every process."""
    lock, problem = None, None
    if jax.process_index() == 0:
        try:
            lock = RunLock(workdir)
        except UserError as error:
            problem = error
    raise_together(problem)
    return lock


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Writes `config.json`: the config of the latest start.

    Raises:
      UserError: it cannot be written.
    """
    try:
        write_text(workdir / "config.json", to_json(config) + "\n")
    except OSError as error:
        raise UserError(f"{workdir / 'config.json'}: cannot be written ({error.strerror})", code="disk") from error


def restore_or_initialize(
    config: Config,
    create_state: Callable[..., TrainState],
    mesh: Mesh,
    *,
    classes: ClassTable,
    checkpoints: Checkpoints,
    batches: BatchIterator,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state of the newest intact checkpoint with its counts, or an initial state without any.

    Args:
      create_state: an initial state, random, or with the variables that it is given.
      batches: is moved to the position of the checkpoint.

    Raises:
      UserError: every checkpoint is damaged, the newest is of another run, or the disk has no room for more.
    """
    abstract = jax.eval_shape(create_state)
    checkpoint = _newest_checkpoint(config, checkpoints, abstract)
    if checkpoint is None:
        return _initial_state(config, create_state), {}
    meta = load_meta(checkpoint)
    check_same_state(from_dict(meta["config"]), config, str(checkpoint))
    difference = ClassTable.from_json(meta["classes"]).difference(classes)
    if difference:
        raise CheckpointError(f"{checkpoint}: other classes than those of the data ({difference}); use another workdir")
    sharding = replicated(mesh)
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
    weights, training = load_run(checkpoint, model=target.model, training=target.training)
    try:
        batches.set_state(meta["position"])
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from error
    return TrainState.from_items(weights, training), meta.get("counts", {})


def _newest_checkpoint(config: Config, checkpoints: Checkpoints, abstract: TrainState) -> pathlib.Path | None:
    """The checkpoint to resume from, chosen by process 0 for all; None: start from the beginning."""
    step, problem = None, None
    if jax.process_index() == 0:
        try:
            step, kept = checkpoints.newest_intact(), config.train.keep_latest + config.train.keep_best
            check_free_space(checkpoints.directory.parent, abstract, kept=kept, existing=len(checkpoints.steps()))
        except (UserError, OSError) as error:
            problem = error if isinstance(error, UserError) else UserError(str(error), code="disk")
    raise_together(problem)
    step = number_of_process_0(-1 if step is None else step)
    if step < 0:
        return None
    path = checkpoints.directory / str(step)
    unseen = f"{path}: process {jax.process_index()} does not see it"
    raise_together(None if path.is_dir() else CheckpointError(unseen))
    return path


def _initial_state(config: Config, create_state: Callable[..., TrainState]) -> TrainState:
    """Random parameters, with those of `train.init_from` in their place.

    Raises:
      ConfigError: random parameters would stay frozen.
    """
    train, network = config.train, config.model
    if not train.init_from:
        if train.fresh_heads:
            raise ConfigError("config.train.fresh_heads: without config.train.init_from everything is fresh")
        frozen_norms = bool(jax.tree.leaves(jax.eval_shape(create_state).batch_stats))
        if network.freeze_at or frozen_norms:
            norms, change = (
                ("", "") if not frozen_norms else (" and frozen norms", " --config.model.backbone_norm=group_norm")
            )
            raise ConfigError(
                f"config.train.init_from is empty, but with model.freeze_at={network.freeze_at}{norms} parts of the "
                "backbone never learn: start from pretrained weights (--init-from; docs/training.md says where they "
                f"are), or learn everything with --config.model.freeze_at=0{change}"
            )
        return create_state()
    variables = jax.device_get(create_state().variables)
    merged, notes = initialize_from(pathlib.Path(train.init_from), variables, config, fresh_heads=train.fresh_heads)
    if jax.process_index() == 0:
        print_lines(f"starting from {train.init_from}", *notes, to=sys.stdout)
    return create_state(merged)
