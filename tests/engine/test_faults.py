"""Whatever happens to a run: signals, a second process, full and read-only disks, bad losses, broken pictures.

The loop, its files and its decisions are real; only the network's step is replaced by one that needs no compilation.
`test_kills.py` does it to the real thing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.data.scenes import Scenes
from pfcn_jax.data.sources import DataError
from pfcn_jax.engine import starting
from pfcn_jax.engine import steps as steps_room
from pfcn_jax.engine import train as train_verb
from pfcn_jax.engine.config import from_command_line
from pfcn_jax.engine.state import TrainState, replicated
from pfcn_jax.engine.stopping import STOPPED
from pfcn_jax.engine.train import Trainer
from pfcn_jax.engine.watch import NonFiniteError, make_report
from pfcn_jax.engine.workdir import RunLock, check_room
from pfcn_jax.errors import UserError
from tests.engine.disks import fill, make_read_only, mounted
from tests.engine.tiny import TINY

RUN = [*TINY, "--config.train.steps=12", "--config.train.checkpoint_every=2", "--config.train.log_every=3"]
RUN += ["--config.data.train_examples=16"]
LOSSES = ("loss", "loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _small_state(config, model, mesh, variables=None) -> TrainState:
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


class Fake:
    """In place of the network's step: parameters that depend on every picture so far, and events at chosen steps."""

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


class FakeTrainer(Trainer):
    fake = Fake()

    def __init__(self, config, workdir):
        super().__init__(config, workdir)
        self.step = type(self).fake

    def evaluate(self, step, writer, *, everything, stop=None):
        self.checkpoints.score(step, 1.0)
        return True


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    monkeypatch.setattr(FakeTrainer, "fake", Fake())
    monkeypatch.setattr(train_verb, "Trainer", FakeTrainer)
    _without_network(monkeypatch)


def _without_network(monkeypatch) -> None:
    monkeypatch.setattr(train_verb, "build_model", lambda *_: None)
    monkeypatch.setattr(train_verb, "build_optimizer", lambda *_: None)
    monkeypatch.setattr(starting, "create_state", _small_state)


def _trainer(workdir, *overrides, fake=None) -> FakeTrainer:
    FakeTrainer.fake = fake or Fake()
    return FakeTrainer(from_command_line([*RUN, *overrides]), workdir)


def _steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def _metrics(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line for line in lines}


def _assert_same_end(ours: pathlib.Path, theirs: pathlib.Path, *overrides) -> None:
    states = [jax.device_get(_trainer(workdir, *overrides).state) for workdir in (ours, theirs)]
    assert int(states[0].step) == 12
    jax.tree.map(np.testing.assert_array_equal, *states)
    counted = ("total_dropped_positives", "total_dropped_segments", "skipped_steps", "broken_pictures")
    ours_at, theirs_at = _metrics(ours), _metrics(theirs)
    for step in (3, 6, 9, 12):
        assert [ours_at[step][key] for key in counted] == [theirs_at[step][key] for key in counted]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        _without_network(patch)
        _trainer(workdir).run()
    return workdir


def test_metrics_count_what_was_dropped_and_how_long_a_step_waited(uninterrupted):
    lines = _metrics(uninterrupted)
    assert sorted(lines) == [3, 6, 9, 12]
    assert [lines[step]["total_dropped_positives"] for step in lines] == [6.0, 12.0, 18.0, 24.0]
    assert [lines[step]["total_dropped_segments"] for step in lines] == [3.0, 6.0, 9.0, 12.0]
    assert lines[3]["dropped_positives"] == 2.0 and lines[3]["dropped_segments"] == 1.0
    assert all(line["failed_writes"] == 0.0 and line["input_wait_seconds"] >= 0.0 for line in lines.values())
    assert _steps(uninterrupted) == [10, 12]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_same_command_continues(
    uninterrupted, tmp_path, capsys, number
):
    def kill():
        os.kill(os.getpid(), number)

    FakeTrainer.fake = Fake(events={5: kill, 8: kill})
    command = ["train", *RUN, "--workdir", str(tmp_path)]
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert front_door.main(command) == STOPPED == 75
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after step 5; its checkpoint is written" in said and str(tmp_path) in said
    assert _steps(tmp_path) == [4, 5] and sorted(_metrics(tmp_path)) == [3, 5]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert front_door.main(command) == STOPPED
    assert _steps(tmp_path)[-1] == 8
    FakeTrainer.fake = Fake()
    _trainer(tmp_path).run()
    _assert_same_end(tmp_path, uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_in_no_checkpoint(tmp_path, capsys):
    FakeTrainer.fake = Fake(nan_at=(7,))
    assert front_door.main(["train", *RUN, "--config.train.checkpoint_every=7", "--workdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    trainer = _trainer(tmp_path)
    ids = [trainer.source.info(index).image_id for index in trainer.pipeline.plan[6].examples.tolist()]
    assert "error: step 7: loss, loss_pos_st, loss_seg_st, loss_seg_th not finite" in said
    for image_id in ids:
        assert f"{image_id} (" in said
    assert "There is no checkpoint yet" in said and "on_nonfinite=skip" in said
    assert not _steps(tmp_path)
    # Seen one step late, but never after the checkpoint.
    FakeTrainer.fake = Fake(nan_at=(7,))
    assert front_door.main(["train", *RUN, "--workdir", str(tmp_path)]) == 2
    assert _steps(tmp_path) == [4, 6] and "The last checkpoint is of step 6" in capsys.readouterr().err


def test_steps_that_are_not_finite_may_be_left_out_up_to_a_limit(tmp_path, capsys):
    skip = ("--config.train.on_nonfinite=skip", "--config.train.max_skipped=2")
    trainer = _trainer(tmp_path / "run", *skip, fake=Fake(nan_at=(4, 7)))
    trainer.run()
    assert "step 4: loss" in capsys.readouterr().err
    lines = _metrics(tmp_path / "run")
    assert [lines[step]["skipped_steps"] for step in (3, 6, 9, 12)] == [0.0, 1.0, 2.0, 2.0]
    for leaf in jax.tree.leaves(jax.device_get(_trainer(tmp_path / "run", *skip).state.params)):
        assert np.isfinite(leaf).all()
    with pytest.raises(NonFiniteError, match=r"step 9: .*more than .*max_skipped = 2"):
        _trainer(tmp_path / "other", *skip, fake=Fake(nan_at=(4, 7, 9, 10))).run()
    assert _steps(tmp_path / "other") == [6, 8]


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
            raise DataError(f"scene_{index}.png: broken picture")
        return super().__getitem__(index)


@pytest.fixture
def broken(monkeypatch):
    """Three of the training pictures cannot be read."""
    scenes = Breaking("train", size=(64, 64))
    scenes.broken = frozenset({2, 5, 11})
    source = train_verb.open_training

    def opened(config):
        return dataclasses.replace(source(config), source=scenes)

    monkeypatch.setattr(train_verb, "open_training", opened)
    return scenes


def test_a_broken_picture_stops_the_run_and_what_was_learnt_is_kept(broken, tmp_path, capsys):
    first = 1
    plan = _trainer(tmp_path).pipeline.plan
    while not set(plan[first - 1].examples.tolist()) & broken.broken:
        first += 1
    assert front_door.main(["train", *RUN, "--workdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "error: scene_" in said and "broken picture" in said and "--config.data.on_broken=skip" in said
    assert _steps(tmp_path) == ([] if first == 1 else _steps(tmp_path)) and (
        first == 1 or _steps(tmp_path)[-1] == first - 1
    )


def test_broken_pictures_may_be_skipped_counted_and_limited(broken, tmp_path, capsys):
    skip = ("--config.data.on_broken=skip", "--config.data.max_broken=3")
    _trainer(tmp_path / "whole", *skip).run()
    said = capsys.readouterr().err
    for index in broken.broken:
        assert said.count(f"another one stands in: scene_{index}.png: broken picture") == 1
    assert _metrics(tmp_path / "whole")[12]["broken_pictures"] == 3.0

    def kill():
        os.kill(os.getpid(), signal.SIGTERM)

    for step in (3, 5, 10):
        with pytest.raises(train_verb.Stopped):
            _trainer(tmp_path / "stopped", *skip, fake=Fake(events={step: kill})).run()
    _trainer(tmp_path / "stopped", *skip).run()
    _assert_same_end(tmp_path / "stopped", tmp_path / "whole", *skip)

    fewer = ("--config.data.on_broken=skip", "--config.data.max_broken=1")
    for _ in range(2):  # started again it says the same
        with pytest.raises(DataError, match=r"2 broken pictures, more than config.data.max_broken = 1"):
            _trainer(tmp_path / "limited", *fewer).run()
    _trainer(tmp_path / "limited", *skip).run()  # a higher limit goes on from where it stopped
    _assert_same_end(tmp_path / "limited", tmp_path / "whole", *skip)


def test_a_broken_validation_picture_only_stops_the_last_evaluation(tmp_path, monkeypatch, capsys):
    def evaluate(self, step, writer, *, everything, stop=None):
        if step in broken_at:
            raise DataError(f"val_{step}.png: broken picture")
        return True

    monkeypatch.setattr(FakeTrainer, "evaluate", evaluate)
    broken_at = {4, 8}
    _trainer(tmp_path / "before", "--config.train.eval_every=4").run()
    said = capsys.readouterr().err
    for step in broken_at:
        assert said.count(f"step {step} is not evaluated, the training goes on: val_{step}.png") == 1
    assert _steps(tmp_path / "before")[-1] == 12
    broken_at = {12}
    with pytest.raises(DataError, match=r"val_12\.png"):
        _trainer(tmp_path / "last", "--config.train.eval_every=4").run()
    assert _steps(tmp_path / "last")[-1] == 12


def test_a_disk_that_is_full_for_a_while(uninterrupted, tmp_path, capsys):
    with mounted(tmp_path / "disk", megabytes=40) as disk:
        ballast = []
        events = {4: lambda: ballast.append(fill(disk)), 9: lambda: ballast.pop().unlink()}
        _trainer(disk / "run", fake=Fake(events=events)).run()
        said = capsys.readouterr().err
        assert "this checkpoint could not be written (" in said and "No space left on device" in said
        assert _metrics(disk / "run")[12]["failed_writes"] >= 2.0
        _assert_same_end(disk / "run", uninterrupted)


def test_a_disk_that_stays_full_is_an_error_at_the_end(uninterrupted, tmp_path, capsys):
    with mounted(tmp_path / "disk", megabytes=40) as disk:
        ballast = []
        FakeTrainer.fake = Fake(events={6: lambda: ballast.append(fill(disk))})
        command = ["train", *RUN, "--workdir", str(disk / "run")]
        assert front_door.main(command) == 2
        said = capsys.readouterr().err
        assert "error: the checkpoint of step 12 cannot be written (" in said
        kept = _steps(disk / "run")[-1]
        assert kept in (4, 6) and f"The last checkpoint is of step {kept}. Make room" in said
        assert front_door.main(command) == 2  # before anything is computed: no room
        assert "cannot be written (No space left" in capsys.readouterr().err
        ballast.pop().unlink()
        FakeTrainer.fake = Fake()
        _trainer(disk / "run").run()
        _assert_same_end(disk / "run", uninterrupted)


def _nothing_may_be_computed(monkeypatch):
    def computed(*_, **__):
        raise AssertionError("too late")

    monkeypatch.setattr(starting, "_fresh_state", computed)


def test_a_directory_that_cannot_be_written_is_an_error_at_once(tmp_path, capsys, monkeypatch):
    _nothing_may_be_computed(monkeypatch)
    (tmp_path / "file").write_text("")
    assert front_door.main(["train", *RUN, "--workdir", str(tmp_path / "file" / "run")]) == 2
    assert "file/run: cannot be written (Not a directory); choose another --workdir" in capsys.readouterr().err
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        (disk / "run").mkdir()
        make_read_only(disk)
        for name in ("run", "new"):
            assert front_door.main(["train", *RUN, "--workdir", str(disk / name)]) == 2
            assert f"{disk / name}: cannot be written (Read-only file system)" in capsys.readouterr().err


def test_too_little_room_is_an_error_at_once(tmp_path, capsys, monkeypatch):
    _nothing_may_be_computed(monkeypatch)
    with mounted(tmp_path / "disk", megabytes=1) as disk:
        assert front_door.main(["train", *RUN, "--workdir", str(disk / "run")]) == 2
        said = capsys.readouterr().err
        assert "free, the checkpoints need" in said and "MB" in said and "keep_latest" in said
    state = {"a": jax.ShapeDtypeStruct((1000, 1000, 1000, 1000), np.float32)}
    with pytest.raises(UserError, match=r"the checkpoints need 16\.0 TB \(4\.0 TB each"):
        check_room(tmp_path, state, kept=3, there=0)
    check_room(tmp_path, {"a": np.zeros(3)}, kept=3, there=5)


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
        assert front_door.main(["train", *RUN, "--workdir", str(tmp_path)]) == 75
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
