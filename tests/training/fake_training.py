"""A run with a stand-in for the network: parameters that depend on every image so far, in milliseconds a step."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.commands import train
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.evaluation.evaluate import EvaluationResult
from pfcn_jax.metrics.pq import PanopticQuality
from pfcn_jax.metrics.protocol import Task
from pfcn_jax.optim.state import TrainState
from pfcn_jax.parallel.sharding import replicated
from pfcn_jax.training.collaborators import Collaborators
from pfcn_jax.training.monitor import make_report
from pfcn_jax.training.trainer import Trainer
from tests.support.tiny import TINY

RUN = [*TINY, "--config.train.steps=12", "--config.train.checkpoint_every=2", "--config.train.log_every=3"]
RUN += ["--config.data.train_examples=16"]
LOSSES = ("loss", "loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def small_state(config, model, mesh, variables=None) -> TrainState:
    """In place of the network's: a parameter of a megabyte and a moment for it."""

    def create():
        values = jnp.linspace(0.0, 1.0, 250_000)
        average = values if config.train.ema_decay else None
        return TrainState(jnp.int32(0), {"w": values}, {}, {"moment": jnp.sin(values)}, average)

    return jax.jit(create, out_shardings=replicated(mesh))()


@jax.jit
def _update(state: TrainState, image, bad) -> TrainState:
    moment = 0.9 * state.opt_state["moment"] + jnp.mean(image.astype(jnp.float32)) / 255.0
    params = jnp.where(bad, state.params["w"], 0.99 * state.params["w"] + jnp.sin(moment))
    return dataclasses.replace(state, step=state.step + 1, params={"w": params}, opt_state={"moment": moment})


class FakeStep:
    """In place of the network's step: parameters that depend on every image so far, and events at chosen steps."""

    def __init__(self, nan_at=(), events=None):
        self.nan_at, self.events = nan_at, events or {}

    def __call__(self, state: TrainState, batch, stop):
        step = int(state.step) + 1
        if step in self.events:
            self.events[step]()
        bad = step in self.nan_at
        losses = np.full(len(LOSSES), np.nan if bad else 1.0, np.float32)
        if bad:
            losses[LOSSES.index("loss_pos_th")] = 1.0
        scalars = dict(zip(LOSSES, losses)) | {
            "dropped_positives": np.float32(2.0),
            "dropped_segments": np.float32(1.0),
        }
        scalars = {key: jnp.asarray(value) for key, value in (scalars | {"skipped": np.float32(bad)}).items()}
        return _update(state, batch.image, bad), scalars, make_report(scalars, batch.image_id, stop)


def zero_scores(task) -> EvaluationResult:
    """In place of the evaluation: no image is predicted."""
    return EvaluationResult({"pq": PanopticQuality.zeros(Task(task.source.classes))}, images=0, seconds=0.0)


def stand_in(step: FakeStep | None = None, **others) -> Collaborators:
    """A run without a network and without an evaluation; `others` replace more of it."""
    step = step or FakeStep()
    functions = {
        "build_model": lambda *_: None,
        "create_state": small_state,
        "build_step": lambda *_: step,
        "evaluate": zero_scores,
    }
    return Collaborators(**(functions | others))


def trainer_of(workdir, *overrides, step=None, **others) -> Trainer:
    return Trainer(from_command_line([*RUN, *overrides]), workdir, stand_in(step, **others))


def run_command(*words: str, step=None, **others) -> int:
    """Exit status of a `train` command with stand-ins."""
    args = front_door.parse(list(words))
    args.run = functools.partial(train.main, collaborators=stand_in(step, **others))
    return front_door.run(args)


def steps_of(workdir: pathlib.Path) -> list[int]:
    names = (path.name for path in (workdir / "checkpoints").iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def metrics_of(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    """The metrics of training by step; each step once."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line for line in lines}


def evaluated_steps(workdir: pathlib.Path) -> list[int]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "eval/PQ" in line]


def assert_same_end(ours: pathlib.Path, theirs: pathlib.Path, *overrides) -> None:
    states = [jax.device_get(trainer_of(workdir, *overrides).state) for workdir in (ours, theirs)]
    assert int(states[0].step) == 12
    jax.tree.map(np.testing.assert_array_equal, *states)
    counted = ("total_dropped_positives", "total_dropped_segments", "skipped_steps", "broken_pictures")
    ours_at, theirs_at = metrics_of(ours), metrics_of(theirs)
    for step in (3, 6, 9, 12):
        assert [ours_at[step][key] for key in counted] == [theirs_at[step][key] for key in counted]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("whole")
    trainer_of(workdir).run()
    return workdir
