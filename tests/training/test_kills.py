"""A training that is killed again and again, also while it writes a checkpoint, ends with the very bits of one that is
not: the real command in processes of its own."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pfcn_jax.checkpoints.format import load_stored
from pfcn_jax.checkpoints.manifest import find_damage
from pfcn_jax.errors import STOPPED
from tests.support.tiny import TINY

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).with_name("kill_worker.py")
KILLS = 20
SMALLER = [
    "--config.data.scene_size=(32, 32)",
    "--config.data.short_sides=(32,)",
    "--config.data.eval_short_side=32",
    "--config.data.canvases=((32, 32),)",
    "--config.data.eval_canvases=((32, 32),)",
    "--config.model.fpn_channels=8",
    "--config.model.head_channels=8",
    "--config.model.kernel_channels=8",
    "--config.train.ema_decay=0.9",
    "--config.train.checkpoint_every=2",
]
KEYS = {word.partition("=")[0] for word in SMALLER}
RUN = [*(word for word in TINY if word.partition("=")[0] not in KEYS), *SMALLER]  # a tuple given twice would grow
NOT_COMPARED = ("images_per_second", "step_seconds", "input_wait_seconds", "failed_writes")  # they measure the machine


class Run:
    """The command in a process that is ready to begin; it can be killed."""

    def __init__(self, workdir: pathlib.Path, *words: str):
        cache = pathlib.Path(str(jax.config.jax_compilation_cache_dir)) / "kills"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(WORKER), *words, "--workdir", str(workdir)]
        self.checkpoints = workdir / "checkpoints"
        self.log = workdir.with_name(f"{workdir.name}.log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def begin(self) -> Run:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.close()
        return self

    def step(self) -> int:
        """The newest step with a checkpoint."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()), default=0)

    def wait_for(self, condition) -> bool:
        """False: the process has ended before."""
        deadline = time.monotonic() + 600
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.001)
        return False

    def finish(self) -> int:
        try:
            return self.process.wait(timeout=900)
        finally:
            self.process.kill()


def _half_written(checkpoints: pathlib.Path) -> bool:
    return any("orbax-checkpoint-tmp" in path.name for path in checkpoints.glob("*"))


def _kill_at_random(run: Run, rng: random.Random, number: signal.Signals) -> str:
    """Sends the signal once the run has come some steps further; returns what it did just then."""
    start, more = run.step(), rng.randrange(1, 5)
    writing = rng.random() < 0.5
    if not run.wait_for(lambda: run.step() >= start + more):
        return "ended"
    if writing and not run.wait_for(lambda: _half_written(run.checkpoints)):
        return "ended"
    if not writing:
        time.sleep(rng.random() * 0.2)
    run.process.send_signal(number)
    return "writing" if _half_written(run.checkpoints) else "computing"


@pytest.mark.slow
@pytest.mark.parametrize(("stand_in", "steps"), [(["--stand-in"], 200), ([], 120)], ids=["stand_in", "network"])
def test_a_training_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path, stand_in, steps):
    words = [*stand_in, "train", *RUN, f"--config.train.steps={steps}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ready = Run(killed, *words)
    assert Run(whole, *words).begin().finish() == 0
    rng, when = random.Random(7), []
    for number in [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL] * (KILLS // 4):
        run, ready = ready.begin(), Run(killed, *words)  # the next one imports meanwhile
        try:
            when.append(_kill_at_random(run, rng, number))
        finally:
            status = run.finish()
        assert status == (STOPPED if number == signal.SIGTERM else -signal.SIGKILL), run.log.read_text()[-3000:]
    assert when.count("writing") >= 3 and "ended" not in when, when
    assert run.step() < steps  # all of them came before the end
    assert ready.begin().finish() == 0
    log = run.log.read_text()
    assert log.count("stopped by SIGTERM after step") == KILLS // 4 and "damaged" not in log

    states = []
    for workdir in (killed, whole):
        path = workdir / "checkpoints" / str(steps)
        assert find_damage(path) == []
        states.append((load_stored(path, "model"), load_stored(path, "training")))
    jax.tree.map(np.testing.assert_array_equal, *states)
    metrics = [(workdir / "metrics.jsonl").read_text().splitlines() for workdir in (killed, whole)]
    lines = [[json.loads(line) for line in each] for each in metrics]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for ours, theirs in zip(*lines):
        assert all(ours[key] == theirs[key] for key in theirs if key not in NOT_COMPARED), ours["step"]
