"""Whatever happens to a run: signals, a second process, full and read-only disks, bad losses, broken images.

The loop, its files and its decisions are real; only the network's step is replaced by one that needs no compilation.
`test_kills.py` does it to the real thing.
"""
# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax import steps as steps_room
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.example import DataError
from pfcn_jax.data.sources import FirstExamples
from pfcn_jax.errors import STOPPED, Stopped, UserError
from pfcn_jax.optim.state import TrainState
from pfcn_jax.training.monitor import NonFiniteError
from pfcn_jax.training.workdir import RunLock, check_free_space
from tests.support.disks import fill, make_read_only, mounted
from tests.training.fake_training import (  # noqa: F401  (fixtures)
    RUN,
    FakeStep,
    assert_same_end,
    metrics_of,
    run_command,
    small_state,
    standard_promotion,
    steps_of,
    trainer_of,
    uninterrupted,
    zero_scores,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_metrics_count_what_was_dropped_and_how_long_a_step_waited(uninterrupted):
    lines = metrics_of(uninterrupted)
    assert sorted(lines) == [3, 6, 9, 12]
    assert [lines[step]["total_dropped_positives"] for step in lines] == [6.0, 12.0, 18.0, 24.0]
    assert [lines[step]["total_dropped_segments"] for step in lines] == [3.0, 6.0, 9.0, 12.0]
    assert lines[3]["dropped_positives"] == 2.0 and lines[3]["dropped_segments"] == 1.0
    assert all(line["failed_writes"] == 0.0 and line["input_wait_seconds"] >= 0.0 for line in lines.values())
    assert steps_of(uninterrupted) == [10, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_same_command_continues(
    uninterrupted, tmp_path, capsys, number
):
    def kill():
        os.kill(os.getpid(), number)

    step = FakeStep(events={5: kill, 8: kill})
    command = ["train", *RUN, "--workdir", str(tmp_path)]
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert run_command(*command, step=step) == STOPPED == 75
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after step 5; its checkpoint is written" in said and str(tmp_path) in said
    assert steps_of(tmp_path) == [4, 5] and sorted(metrics_of(tmp_path)) == [3, 5]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert run_command(*command, step=step) == STOPPED
    assert steps_of(tmp_path)[-1] == 8
    trainer_of(tmp_path).run()
    assert_same_end(tmp_path, uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_in_no_checkpoint(tmp_path, capsys):
    command = ["train", *RUN, "--workdir", str(tmp_path)]
    assert run_command(*command, "--config.train.checkpoint_every=7", step=FakeStep(nan_at=(7,))) == 2
    said = capsys.readouterr().err
    trainer = trainer_of(tmp_path)
    ids = [trainer.source.info(index).image_id for index in trainer.pipeline.plan[6].examples.tolist()]
    assert "error: step 7: loss, loss_pos_st, loss_seg_st, loss_seg_th not finite" in said
    for image_id in ids:
        assert f"{image_id} (" in said
    assert "There is no checkpoint yet" in said and "on_nonfinite=skip" in said
    assert not steps_of(tmp_path)
    # Seen one step late, but never after the checkpoint.
    assert run_command(*command, step=FakeStep(nan_at=(7,))) == 2
    assert steps_of(tmp_path) == [4, 6] and "The last checkpoint is of step 6" in capsys.readouterr().err


def test_steps_that_are_not_finite_may_be_left_out_up_to_a_limit(tmp_path, capsys):
    skip = ("--config.train.on_nonfinite=skip", "--config.train.max_skipped=2")
    trainer = trainer_of(tmp_path / "run", *skip, step=FakeStep(nan_at=(4, 7)))
    trainer.run()
    assert "step 4: loss" in capsys.readouterr().err
    lines = metrics_of(tmp_path / "run")
    assert [lines[step]["skipped_steps"] for step in (3, 6, 9, 12)] == [0.0, 1.0, 2.0, 2.0]
    for leaf in jax.tree.leaves(jax.device_get(trainer_of(tmp_path / "run", *skip).state.params)):
        assert np.isfinite(leaf).all()
    with pytest.raises(NonFiniteError, match=r"step 9: .*more than .*max_skipped = 2"):
        trainer_of(tmp_path / "other", *skip, step=FakeStep(nan_at=(4, 7, 9, 10))).run()
    assert steps_of(tmp_path / "other") == [6, 8]


def test_the_compiled_step_changes_nothing_if_a_gradient_is_not_finite(monkeypatch):
    config = from_command_line([*RUN, "--config.train.ema_decay=0.5"])

    def gradients_of(state, batch, **_):
        return {"w": batch}, {"loss": jnp.zeros(()), "dropped_positives": jnp.zeros(())}

    monkeypatch.setattr(steps_room, "gradients_of", gradients_of)
    optimizer = steps_room.optax.adam(0.1)
    params = {"w": jnp.ones(3)}
    state = TrainState(jnp.int32(4), params, {}, optimizer.init(params), params)
    step = jax.jit(
        lambda state, batch: steps_room.train_step(state, batch, model=None, optimizer=optimizer, config=config)
    )
    for value, skipped in ((1.0, 0.0), (np.inf, 1.0), (np.nan, 1.0)):
        after, scalars = step(state, jnp.array([1.0, value, 2.0], jnp.float32))
        assert scalars["skipped"] == skipped and after.step == 5
        moved = not np.array_equal(after.params["w"], params["w"])
        assert moved == (skipped == 0.0)
        if skipped:
            jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, step=state.step), state)


class Breaking(Scenes):
    """Scenes of which some cannot be read."""

    broken: frozenset[int] = frozenset()

    def __getitem__(self, index):
        if index in self.broken:
            raise DataError(f"scene_{index}.png: broken image")
        return super().__getitem__(index)


@pytest.fixture
def broken():
    """A source whose training images 2, 5 and 11 cannot be read."""
    scenes = Breaking("train", size=(64, 64))
    scenes.broken = frozenset({2, 5, 11})
    return scenes


def opening(scenes):
    """Opens the first examples of `scenes` in place of the training split."""
    return lambda config: FirstExamples(scenes, config.train_examples)


def test_a_broken_image_stops_the_run_and_what_was_learnt_is_kept(broken, tmp_path, capsys):
    first = 1
    run = functools.partial(run_command, "train", *RUN, "--workdir", str(tmp_path), open_training=opening(broken))
    plan = trainer_of(tmp_path).pipeline.plan
    while not set(plan[first - 1].examples.tolist()) & broken.broken:
        first += 1
    assert run() == 2
    said = capsys.readouterr().err
    assert "error: scene_" in said and "broken image" in said and "--config.data.on_broken=skip" in said
    assert steps_of(tmp_path) == ([] if first == 1 else steps_of(tmp_path)) and (
        first == 1 or steps_of(tmp_path)[-1] == first - 1
    )


class OutOfMemory(Scenes):
    """Scenes whose example 7 ends the input."""

    def __getitem__(self, index):
        if index == 7:
            raise UserError("no 9 MB of shared memory for a batch")
        return super().__getitem__(index)


def test_input_that_cannot_go_on_is_an_error_in_one_line_and_what_was_learnt_is_kept(tmp_path, capsys):
    open_training = opening(OutOfMemory("train", size=(64, 64)))
    assert run_command("train", *RUN, "--workdir", str(tmp_path), open_training=open_training) == 2
    assert "error: no 9 MB of shared memory for a batch" in capsys.readouterr().err
    trainer = trainer_of(tmp_path)
    planned = [trainer.pipeline.plan[number].examples.tolist() for number in range(12)]
    first = next(number for number, examples in enumerate(planned) if 7 in examples)
    assert 0 < first == steps_of(tmp_path)[-1] == int(trainer.state.step)
    trainer.run()


def test_broken_images_may_be_skipped_counted_and_limited(broken, tmp_path, capsys):
    skip = ("--config.data.on_broken=skip", "--config.data.max_broken=3")
    training = functools.partial(trainer_of, open_training=opening(broken))
    training(tmp_path / "whole", *skip).run()
    said = capsys.readouterr().err
    for index in broken.broken:
        assert said.count(f"another one stands in: scene_{index}.png: broken image") == 1
    assert metrics_of(tmp_path / "whole")[12]["broken_pictures"] == 3.0

    def kill():
        os.kill(os.getpid(), signal.SIGTERM)

    for step in (3, 5, 10):
        with pytest.raises(Stopped):
            training(tmp_path / "stopped", *skip, step=FakeStep(events={step: kill})).run()
    training(tmp_path / "stopped", *skip).run()
    assert_same_end(tmp_path / "stopped", tmp_path / "whole", *skip)

    fewer = ("--config.data.on_broken=skip", "--config.data.max_broken=1")
    for _ in range(2):  # started again it says the same
        with pytest.raises(DataError, match=r"config\.data\.max_broken = 1"):
            training(tmp_path / "limited", *fewer).run()
    training(tmp_path / "limited", *skip).run()  # a higher limit goes on from where it stopped
    assert_same_end(tmp_path / "limited", tmp_path / "whole", *skip)


def test_a_broken_validation_image_only_stops_the_last_evaluation(tmp_path, capsys):
    def evaluate(task):
        if task.step in broken_at:
            raise DataError(f"val_{task.step}.png: broken image")
        return zero_scores(task)

    every_4 = "--config.train.eval_every=4"
    broken_at = {4, 8}
    trainer_of(tmp_path / "before", every_4, evaluate=evaluate).run()
    said = capsys.readouterr().err
    for step in broken_at:
        assert said.count(f"step {step} is not evaluated, the training goes on: val_{step}.png") == 1
    assert steps_of(tmp_path / "before")[-1] == 12
    broken_at = {12}
    with pytest.raises(DataError, match=r"val_12\.png"):
        trainer_of(tmp_path / "last", every_4, evaluate=evaluate).run()
    assert steps_of(tmp_path / "last")[-1] == 12


def test_a_disk_that_is_full_for_a_while(uninterrupted, tmp_path, capsys):
    with mounted(tmp_path / "disk", megabytes=40) as disk:
        ballast = []
        events = {4: lambda: ballast.append(fill(disk)), 9: lambda: ballast.pop().unlink()}
        trainer_of(disk / "run", step=FakeStep(events=events)).run()
        said = capsys.readouterr().err
        assert "this checkpoint could not be written (" in said and "No space left on device" in said
        assert metrics_of(disk / "run")[12]["failed_writes"] >= 2.0
        assert_same_end(disk / "run", uninterrupted)


def test_a_disk_that_stays_full_is_an_error_at_the_end(uninterrupted, tmp_path, capsys):
    with mounted(tmp_path / "disk", megabytes=40) as disk:
        ballast = []

        def fill_once_it_is_written():
            while steps_of(disk / "run")[-1:] != [4]:  # step 4 is written in the background
                time.sleep(0.01)
            ballast.append(fill(disk))

        command = ["train", *RUN, "--workdir", str(disk / "run")]
        assert run_command(*command, step=FakeStep(events={6: fill_once_it_is_written})) == 2
        said = capsys.readouterr().err
        assert "error: the checkpoint of step 12 cannot be written (" in said
        assert steps_of(disk / "run")[-1] == 4 and "The last checkpoint is of step 4. Make room" in said
        assert run_command(*command) == 2  # before anything is computed: no room
        assert "cannot be written (No space left" in capsys.readouterr().err
        ballast.pop().unlink()
        trainer_of(disk / "run").run()
        assert_same_end(disk / "run", uninterrupted)


def _shapes_only(config, model, mesh, variables=None):
    """A state that is never computed: only its shapes are asked for."""
    state = small_state(config, model, mesh)
    assert isinstance(state.step, jax.core.Tracer), "too late"
    return state


def test_a_directory_that_cannot_be_written_is_an_error_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command("train", *RUN, "--workdir", str(tmp_path / "file" / "run"), create_state=_shapes_only) == 2
    said = capsys.readouterr().err
    assert "file/run: cannot be written (Not a directory); choose another --workdir [disk: " in said
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        (disk / "run").mkdir()
        make_read_only(disk)
        for name in ("run", "new"):
            assert run_command("train", *RUN, "--workdir", str(disk / name), create_state=_shapes_only) == 2
            assert f"{disk / name}: cannot be written (Read-only file system)" in capsys.readouterr().err


def test_too_little_room_is_an_error_at_once(tmp_path, capsys):
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        assert run_command("train", *RUN, "--workdir", str(disk / "run"), create_state=_shapes_only) == 2
        said = capsys.readouterr().err
        assert "free, the checkpoints need" in said and "MB" in said and "keep_latest" in said
    state = {"a": jax.ShapeDtypeStruct((1000, 1000, 1000, 1000), np.float32)}
    with pytest.raises(UserError, match=r"the checkpoints need 16\.0 TB \(4\.0 TB each"):
        check_free_space(tmp_path, state, kept=3, existing=0)
    check_free_space(tmp_path, {"a": np.zeros(3)}, kept=3, existing=5)


HOLDER = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused", flush=True)
    sys.exit(3)
os.write(file, f"process {os.getpid()} on elsewhere".encode())
print("taken", flush=True)
time.sleep(600)
"""


def _hold(workdir: pathlib.Path) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-c", HOLDER, str(workdir / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_a_second_process_on_the_same_directory_is_refused(tmp_path, capsys):
    holder, said = _hold(tmp_path)
    try:
        assert said == "taken"
        # A process of another machine: it may be gone, and then the file server takes its lock back.
        assert run_command("train", *RUN, "--workdir", str(tmp_path)) == 75
        assert f"{tmp_path}: in use by process {holder.pid} on elsewhere" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.communicate()
    lock = RunLock(tmp_path)  # the process is gone, and its lock with it
    other, said = _hold(tmp_path)
    other.communicate(timeout=60)
    assert said == "refused" and other.returncode == 3
    lock.release()
    owner = rf"process {os.getpid()} on \S+ since [-\d]+ [:\d]+, (boot|host) \S+\n"
    assert re.fullmatch(owner, (tmp_path / "lock").read_text())
    holder, said = _hold(tmp_path)
    holder.kill()
    holder.communicate()
    assert said == "taken"
