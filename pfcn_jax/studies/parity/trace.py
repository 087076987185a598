"""Replays recorded trainings of the original through our training step: the same weights, batches and schedule.

The format is described in the README of the folder `trace` of a reference data directory. A fixed list of batches takes
the place of the data pipeline; the step, the schedule, clipping, decay and freezing are those of `train`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pfcn_jax.config.schema import Config, TrainOptions
from pfcn_jax.errors import UserError
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.optim.options import OptimOptions
from pfcn_jax.optim.state import TrainState
from pfcn_jax.panoptic.options import LossOptions, TargetOptions
from pfcn_jax.steps import Scalars, train_step
from pfcn_jax.studies.parity.network import place
from pfcn_jax.studies.parity.reference import Recorded
from pfcn_jax.studies.parity.targets import NUM_STUFF, NUM_THINGS
from pfcn_jax.training.state import build_optimizer
from pfcn_jax.types import IGNORE, Batch, SegmentTable

PyTree = Any
Step = Callable[[TrainState, Batch], tuple[TrainState, Scalars]]
LOSSES = ("loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")
# What our optimizer does without asking: a recorded run that does otherwise cannot be replayed.
FIXED = {
    "name": "sgd",
    "nesterov": False,
    "dampening": 0.0,
    "weight_decay_norm": 0.0,
    "schedule": "WarmupPolyLR",
    "warmup_method": "linear",
    "poly_constant_ending": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Trace:
    """A recorded training. Step s = 1, 2, ... takes batch (s - 1) modulo their number."""

    recorded: Recorded
    config: Config  # the original's settings, `targets.padding` = "canvas" included
    batches: list[Batch]
    losses: dict[str, np.ndarray]  # of every run of the original: [n, 4], before the update of its step

    @property
    def name(self) -> str:
        return self.recorded.path.stem

    @property
    def variant(self) -> str:
        return str(self.recorded.config["config"])

    @property
    def steps(self) -> int:
        return len(self.losses["float32"])

    @property
    def recorded_steps(self) -> list[int]:
        """The steps after which the original's parameters were measured."""
        keys = [key.split("/")[1] for key in self.recorded.arrays if key.startswith("float32/step")]
        return sorted({int(key.removeprefix("step")) for key in keys})


@dataclasses.dataclass(frozen=True)
class Replay:
    """Our run of a trace."""

    losses: np.ndarray  # [n, 4]
    grad_norm: np.ndarray  # [n], before clipping
    positives: np.ndarray  # [n], (instance, level) pairs of the batch
    final_losses: np.ndarray  # [number of batches, 4], after the last update


def trace_files(reference: pathlib.Path) -> list[pathlib.Path]:
    """Every `trace*.npz` in `reference/trace`, or in `reference` itself."""
    folder = reference / "trace" if (reference / "trace").is_dir() else reference
    return sorted(folder.glob("trace*.npz"))


def read_trace(path: pathlib.Path) -> Trace:
    """A recorded training, ready for our training step.

    Raises:
      UserError: its losses, optimizer or masks are of a kind that our training step does not have.
    """
    recorded = Recorded(path)
    if tuple(recorded.json("loss_names")) != LOSSES:
        raise UserError(f"{path}: its losses are {recorded.json('loss_names')}, expected {list(LOSSES)}")
    prefixes = [f"b{index}." for index in range(int(recorded["batches"]))] if "batches" in recorded else [""]
    instances = max(
        len(recorded[f"{prefix}in{index}.classes"])
        for prefix in prefixes
        for index in range(int(recorded[f"{prefix}batch"]))
    )
    return Trace(
        recorded=recorded,
        config=_config(recorded, batch_size=int(recorded[f"{prefixes[0]}batch"])),
        batches=[recorded_batch(recorded, prefix, instances) for prefix in prefixes],
        losses={run: recorded[f"{run}/losses"] for run in recorded.json("runs")},
    )


def _config(recorded: Recorded, *, batch_size: int) -> Config:
    """The settings of a recorded run: a run of ours under them does what the original did."""
    optim = recorded.json("optim")
    for key, value in FIXED.items():
        if optim[key] != value:
            raise UserError(f"{recorded.path}: optim.{key} is {optim[key]!r}, our training step knows {value!r} only")
    return Config(
        name=recorded.path.stem,
        targets=TargetOptions(padding="canvas"),
        loss=LossOptions(positives=recorded.config["pos_num"]),
        optim=OptimOptions(
            learning_rate=optim["base_lr"],
            reference_batch=batch_size,
            momentum=optim["momentum"],
            weight_decay=optim["weight_decay"],
            clip_value=optim["clip_value"],
            warmup_steps=optim["warmup_iters"],
            warmup_factor=optim["warmup_factor"],
            poly_power=optim["poly_power"],
        ),
        train=TrainOptions(steps=optim["max_iter"], batch_size=batch_size),
    )


def recorded_batch(recorded: Recorded, prefix: str, instances: int) -> Batch:
    """The batch whose keys start with `prefix`, as the data pipeline would make it.

    Rows of the segment table: `instances` slots for the instances, one for crowds, one for every stuff class.

    Raises:
      UserError: two masks overlap, or a mask covers stuff: an id map cannot hold them.
    """
    names = [f"{prefix}in{index}." for index in range(int(recorded[f"{prefix}batch"]))]
    image, size = place([recorded[f"{name}image"] for name in names])
    if image.shape[1:3] != tuple(recorded[f"{prefix}padded"]):
        raise UserError(f"{recorded.path}: {prefix}padded is not the largest sides rounded up to a multiple of 32")
    rows = instances + 1 + NUM_STUFF
    segment_map = np.zeros(image.shape[:3], np.int32)
    class_id = np.zeros((len(names), rows), np.int32)
    class_id[:, instances + 1 :] = NUM_THINGS + np.arange(NUM_STUFF)
    box, valid = np.zeros((len(names), rows, 4), np.float32), np.zeros((len(names), rows), bool)
    for index, name in enumerate(names):
        masks, semantic = recorded[f"{name}masks"], recorded[f"{name}sem_seg"].astype(np.int32)
        if (masks.sum(axis=0) > 1).any() or (semantic[masks.any(axis=0)] != 0).any():
            raise UserError(f"{recorded.path}: {name}masks overlap each other or stuff; a batch holds one id a pixel")
        ids = np.where(semantic == IGNORE, 0, instances + 1 + semantic)
        for row, mask in enumerate(masks):
            ids[mask] = row + 1
        segment_map[index, : ids.shape[0], : ids.shape[1]] = ids
        class_id[index, : len(masks)] = recorded[f"{name}classes"]
        box[index, : len(masks)] = recorded[f"{name}boxes"]
        valid[index, : len(masks)] = True
        valid[index, np.unique(ids[ids > instances]) - 1] = True
    rank = np.broadcast_to(np.arange(rows), valid.shape)
    arrays = jax.tree.map(jnp.asarray, (class_id, rank <= instances, rank == instances, box, valid))
    return Batch(
        image=jnp.asarray(image),
        segment_map=jnp.asarray(segment_map),
        segments=SegmentTable(*arrays),
        size=jnp.asarray(size),
        original_size=jnp.asarray(size),
        image_id=jnp.arange(len(names), dtype=jnp.int32),
        valid=jnp.ones(len(names), bool),
    )


def compile_step(model: PanopticFCN, config: Config) -> Step:
    """The training step that `train` runs, on one device."""
    optimizer = build_optimizer(config, model)
    return jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, config=config))


def start_state(variables: PyTree, model: PanopticFCN, config: Config) -> TrainState:
    """The state before the first step."""
    opt_state = build_optimizer(config, model).init(variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], opt_state)


def replay(
    trace: Trace,
    step: Step,
    state: TrainState,
    *,
    steps: int | None = None,
    final: bool = True,
    observe: Callable[[int, TrainState], None] = lambda step, state: None,
) -> tuple[Replay, TrainState]:
    """Runs the steps of a trace (all, or the first `steps`) from `state`; returns the state after them, too.

    Args:
      final: also computes the losses of every batch after the last step.
      observe: is told the number of each step and the state after it.
    """
    rows = []
    for number, batch in zip(range(1, 1 + (steps or trace.steps)), cycle(trace.batches)):
        state, scalars = step(state, batch)
        rows.append([scalars[name] for name in (*LOSSES, "grad_norm", "positives")])
        observe(number, state)
    last = trace.batches if final else []
    after = [[step(state, batch)[1][name] for name in LOSSES] for batch in last]
    values = np.asarray(jax.device_get(rows), np.float64)
    ours = Replay(values[:, :4], values[:, 4], values[:, 5], np.asarray(jax.device_get(after), np.float64))
    return ours, state


def cycle(batches: list[Batch]) -> Iterator[Batch]:
    """The batches, again and again."""
    while True:
        yield from batches


def momentum_of(state: TrainState) -> PyTree:
    """The momentum of each trained parameter; after the first step the clipped gradient plus the decay."""
    momentum = optax.tree.get(state.opt_state, "trace")

    def fill(value: Any, param: jax.Array) -> jax.Array:
        return jnp.zeros_like(param) if isinstance(value, optax.MaskedNode) else value

    return jax.tree.map(fill, momentum, state.params, is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode))
