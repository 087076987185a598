"""What a run must not wait for, and what it must not lose, when its surroundings answer late, wrongly or not at all."""
# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from pfcn_jax.checkpoints import manager as run_checkpoints
from pfcn_jax.checkpoints.format import CheckpointError
from pfcn_jax.errors import STOPPED, Stopped, TryAgain, UserError
from pfcn_jax.parallel.prefetch import DevicePrefetch
from pfcn_jax.training import workdir
from pfcn_jax.utils.stderr import print_lines
from tests.support.disks import fill, mounted
from tests.training.fake_training import (  # noqa: F401  (fixtures)
    RUN,
    FakeStep,
    assert_same_end,
    evaluated_steps,
    metrics_of,
    run_command,
    standard_promotion,
    steps_of,
    trainer_of,
    uninterrupted,
    zero_scores,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Hanging:
    """Batches of a trainer, of which the first `count` come and then none until `answer` is set."""

    def __init__(self, batches, count: int):
        self._batches, self._left, self.answer = batches, count, threading.Event()

    def __next__(self):
        if self._left == 0:
            self.answer.wait(600)
        self._left -= 1
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def test_a_signal_is_heard_while_the_input_does_not_answer(uninterrupted, tmp_path):
    later = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    impatient = functools.partial(DevicePrefetch, close_seconds=0.1, listen_seconds=0.05)
    trainer = trainer_of(tmp_path, step=FakeStep(events={5: later.start}), prefetch=impatient)
    trainer.batches = Hanging(trainer.batches, 5)
    with pytest.raises(Stopped, match="SIGTERM after step 5"):
        trainer.run()
    trainer.batches.answer.set()
    assert steps_of(tmp_path)[-1] == 5
    trainer_of(tmp_path).run()
    assert_same_end(tmp_path, uninterrupted)


def test_a_directory_that_cannot_be_listed_is_never_a_new_start(uninterrupted, tmp_path, monkeypatch, capsys):
    with pytest.raises(Stopped):
        trainer_of(tmp_path, step=FakeStep(events={8: lambda: os.kill(os.getpid(), signal.SIGTERM)})).run()
    lines = (tmp_path / "metrics.jsonl").read_text()
    listdir = os.listdir

    def fail(path="."):
        if str(path).endswith("checkpoints"):
            raise OSError(errno.ESTALE, "Stale file handle")
        return listdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoints.os, "listdir", fail)
        assert run_command("train", *RUN, "--workdir", str(tmp_path)) == 2
    assert f"{tmp_path / 'checkpoints'}: cannot be read (Stale file handle)" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    trainer_of(tmp_path).run()
    assert_same_end(tmp_path, uninterrupted)


class FullLog(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_end_of_a_run_whose_checkpoints_cannot_be_listed_says_so(tmp_path, monkeypatch, capsys):
    def fail(self):
        raise OSError(errno.EIO, "Input/output error")

    def lose():
        monkeypatch.setattr(run_checkpoints.Checkpoints, "_names", fail)
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_command("train", *RUN, "--workdir", str(tmp_path), step=FakeStep(events={5: lose})) == 2
    said = capsys.readouterr().err
    assert (
        "the checkpoint of step 5 cannot be written (" in said and "cannot be listed now (Input/output error)" in said
    )


def test_a_log_on_a_full_disk_ends_no_run(uninterrupted, tmp_path, monkeypatch):
    with mounted(tmp_path / "disk", megabytes=40) as disk:
        monkeypatch.setattr(sys, "stderr", FullLog())
        monkeypatch.setattr(sys, "stdout", FullLog())
        ballast = []
        events = {4: lambda: ballast.append(fill(disk)), 9: lambda: ballast.pop().unlink()}
        trainer_of(disk / "run", step=FakeStep(events=events)).run()
        assert metrics_of(disk / "run")[12]["failed_writes"] >= 2.0
        assert_same_end(disk / "run", uninterrupted)


def test_a_log_takes_names_of_any_script():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_lines("Zürich", "東京", to=stream)
    assert stream.buffer.getvalue() == rb"Z\xfcrich" + b"\n" + rb"\u6771\u4eac" + b"\n"
    stream.close()
    print_lines("to nobody", to=stream)


def test_the_exit_status_does_not_depend_on_the_log():
    program = "import sys; from pfcn_jax.utils.stderr import exit_with, print_lines; print_lines('no room for this'); "
    program += "print('nor for this'); exit_with(75)"
    with open("/dev/full", "w") as full:
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        ran = subprocess.run([sys.executable, "-c", program], env=buffered, stdout=full, stderr=full, check=False)
    assert ran.returncode == 75
    shell = ["sh", "-c", f'exec {sys.executable} -c "$0" >&- 2>&-', program.replace("print('nor for this'); ", "")]
    assert subprocess.run(shell, check=False).returncode == 75


def test_an_evaluation_that_was_stopped_is_made_up_for(tmp_path):
    started: list[int] = []

    def evaluate(task):
        started.append(task.step)
        if started.count(task.step) == 1 and task.step in (4, 12):
            os.kill(os.getpid(), signal.SIGTERM)
            task.on_example(None, None)
        return zero_scores(task)

    command = ["train", *RUN, "--config.train.eval_every=4", "--workdir", str(tmp_path)]
    assert [run_command(*command, evaluate=evaluate) for _ in range(3)] == [STOPPED, STOPPED, 0]
    assert started == [4, 4, 8, 12, 12]
    assert evaluated_steps(tmp_path) == [4, 8, 12]


def test_what_has_a_score_has_its_line_in_the_metrics(tmp_path, monkeypatch):
    """Killed while the checkpoints are thinned out: the score is there, so the line must be, too."""

    def killed(self):
        if any((self.directory / str(step) / "score.json").exists() for step in self.steps()):
            raise SystemExit(137)

    monkeypatch.setattr(run_checkpoints.Checkpoints, "_delete_old", killed)
    with pytest.raises(SystemExit):
        trainer_of(tmp_path, "--config.train.eval_every=4").run()
    assert evaluated_steps(tmp_path) == [4]


def test_a_checkpoint_changed_by_one_bit_costs_only_its_steps(uninterrupted, tmp_path, capsys):
    with pytest.raises(Stopped):
        trainer_of(tmp_path, step=FakeStep(events={9: lambda: os.kill(os.getpid(), signal.SIGTERM)})).run()
    assert steps_of(tmp_path) == [8, 9]
    files = [path for path in (tmp_path / "checkpoints" / "9").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 4
    largest.write_bytes(data)
    trainer_of(tmp_path).run()
    said = capsys.readouterr().err
    assert "damaged, so the checkpoint of step 8 is used" in said and (tmp_path / "damaged" / "9").is_dir()
    assert_same_end(tmp_path, uninterrupted)


def test_a_step_that_was_left_out_keeps_its_learning_rate(uninterrupted, tmp_path):
    skip = ("--config.train.on_nonfinite=skip", "--config.train.max_skipped=2")
    trainer_of(tmp_path, *skip, step=FakeStep(nan_at=(4, 5))).run()
    ours, whole = metrics_of(tmp_path), metrics_of(uninterrupted)
    assert ours[3]["learning_rate"] == whole[3]["learning_rate"] != whole[6]["learning_rate"]
    rates = [ours[step]["learning_rate"] for step in (6, 9, 12)]
    assert rates[0] > rates[1] > rates[2] > whole[12]["learning_rate"]


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch):
    def refuse(number):
        def lockf(*_):
            raise OSError(number, os.strerror(number))

        return lockf

    monkeypatch.setattr(workdir.fcntl, "lockf", refuse(errno.ENOLCK))
    with pytest.raises(UserError, match="its file system has no locks") as caught:
        workdir.RunLock(tmp_path)
    assert not isinstance(caught.value, TryAgain)
    monkeypatch.setattr(workdir.fcntl, "lockf", refuse(errno.EAGAIN))
    with pytest.raises(TryAgain, match="in use by another process"):
        workdir.RunLock(tmp_path)


def test_the_best_checkpoint_stays_while_its_score_cannot_be_read(tmp_path, capsys):
    trainer = trainer_of(tmp_path, "--config.train.keep_latest=1")
    checkpoints = trainer.checkpoints

    def save(step):
        parts = {"model": {"w": np.ones(3)}, "training": {"step": np.int32(step)}}
        checkpoints.save(step, **jax.tree.map(jax.numpy.asarray, parts), meta={})
        checkpoints.wait()

    save(1)
    checkpoints.score(1, 90.0)
    (tmp_path / "checkpoints" / "1" / "score.json").write_text("")  # as a power cut may leave it
    for step in (2, 3):
        save(step)
        checkpoints.score(step, 10.0 * step)
    assert steps_of(tmp_path) == [1, 3]
    trainer.close()


def test_a_manifest_of_nothing_is_damage(tmp_path):
    trainer_of(tmp_path).run()
    manifest = tmp_path / "checkpoints" / "12" / "manifest.json"
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}
    manifest.write_text(json.dumps({"files": {}, "sha256": digest}))
    checkpoints = run_checkpoints.Checkpoints(tmp_path, keep_latest=2, keep_best=1)
    assert checkpoints.newest_intact() == 10
    (tmp_path / "checkpoints" / "10" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        checkpoints.newest_intact()
