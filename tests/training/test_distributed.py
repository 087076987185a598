"""The same run on 1, 2 and 8 devices and in two processes: the same losses, parameters and scores."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.errors import STOPPED, UserError
from pfcn_jax.parallel import distributed
from pfcn_jax.training.workdir import _boot
from tests.ports import free_port
from tests.support.tiny import TINY

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).with_name("distributed_worker.py")
FLAGS = [
    *TINY,
    "--config.optim.name=sgd",  # adam's quotients would blow up the last digit of gradients near zero
    "--config.optim.learning_rate=0.05",
    "--config.optim.reference_batch=8",
    "--config.train.batch_size=8",
    "--config.train.eval_batch_size=2",
    "--config.train.steps=5",
    "--config.train.checkpoint_every=3",
    "--config.train.ema_decay=0.9",
]


def _start(argv: list[str], devices: int, reads: pathlib.Path) -> subprocess.Popen:
    cache = pathlib.Path(str(jax.config.jax_compilation_cache_dir)) / "distributed"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(WORKER), str(reads), *argv]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def _finish(processes: list[subprocess.Popen]) -> list[str]:
    try:
        outputs = [process.communicate(timeout=900)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-5000:]
    return outputs


def _train(workdir: pathlib.Path, *more: str, devices: int, processes: int = 1) -> list[list[int]]:
    """Runs the command to its end on `devices` in all; returns what each process read of the training data."""
    reads = [workdir.with_name(f"{workdir.name}_reads_{index}.json") for index in range(processes)]
    argv = ["train", *FLAGS, "--workdir", str(workdir), *more]
    together = [[]] if processes == 1 else _joined(processes)
    _finish([_start([*argv, *flags], devices // processes, path) for flags, path in zip(together, reads)])
    return [json.loads(path.read_text()) for path in reads]


def _joined(processes: int) -> list[list[str]]:
    """The flags that make one run of processes on this machine."""
    flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--num-processes={processes}"]
    return [[*flags, f"--process-id={index}"] for index in range(processes)]


def _losses(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == sorted({line["step"] for line in lines})
    return {line["step"]: line for line in lines if "loss" in line}


def _assert_same_run(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    losses, expected = _losses(ours), _losses(theirs)
    assert sorted(expected)[-1] == 5 and set(losses) <= set(expected) and 5 in losses
    for step, line in losses.items():
        for name in ("loss", "loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st", "positives", "grad_norm"):
            np.testing.assert_allclose(line[name], expected[step][name], rtol=1e-5, err_msg=f"{name} at step {step}")
    ours_model, theirs_model = (load_checkpoint(path / "checkpoints" / "5").variables for path in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours_model, theirs_model)
    scores = [json.loads((path / "evaluation.json").read_text()) for path in (ours, theirs)]
    assert scores[0]["pictures"] == scores[1]["pictures"] == 3
    for name in ("PQ", "SQ", "RQ"):
        assert scores[0]["All"][name] == pytest.approx(scores[1]["All"][name], abs=1e-3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    """The run on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    _train(workdir, devices=1)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_more_devices_change_nothing(alone, devices, tmp_path):
    _train(tmp_path / "run", devices=devices)
    _assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_processes_are_one_run_and_each_reads_only_its_rows(alone, tmp_path):
    reads = _train(tmp_path / "run", devices=2, processes=2)
    _assert_same_run(tmp_path / "run", alone)
    whole = json.loads(alone.with_name("one_reads_0.json").read_text())
    # Both load ahead of the last step, so they may have read a little more than the run needed.
    for index, own in enumerate(reads):
        batches = [whole[8 * step + 4 * index : 8 * step + 4 * index + 4] for step in range(5)]
        assert [own[4 * step : 4 * step + 4] for step in range(5)] == batches
    assert len(list((tmp_path / "run").glob("metrics.jsonl*"))) == 1
    assert len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(8, 1), (2, 2)])
def test_a_run_continues_on_other_devices(alone, devices, processes, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    shutil.rmtree(run / "checkpoints" / "5")
    (run / "metrics.jsonl").unlink()
    _train(run, devices=devices, processes=processes)
    assert sorted(_losses(run)) == [4, 5]
    _assert_same_run(run, alone)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_and_they_continue(tmp_path):
    run, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    argv = ["train", *FLAGS, "--workdir", str(run), "--config.train.steps=100000"]
    processes = [_start([*argv, *flags], 1, tmp_path / f"{i}.json") for i, flags in enumerate(_joined(2))]
    try:
        deadline = time.monotonic() + 600
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=600)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [STOPPED, STOPPED], outputs
    assert "stopped by SIGTERM after step" in outputs[1] and "a signal to another process after step" in outputs[0]
    stopped_at = max(int(path.name) for path in (run / "checkpoints").iterdir())
    assert sorted(_losses(run))[-1] == stopped_at
    _train(run, f"--config.train.steps={stopped_at + 2}", devices=2, processes=2)
    assert sorted(_losses(run)) == list(range(1, stopped_at + 3))


@pytest.mark.slow
def test_two_processes_start_from_a_checkpoint(alone, tmp_path):
    start = f"--init-from={alone / 'checkpoints' / '5'}"
    _train(tmp_path / "together", start, devices=2, processes=2)
    _train(tmp_path / "one", start, devices=1)
    _assert_same_run(tmp_path / "together", tmp_path / "one")


@pytest.mark.slow
def test_two_processes_on_a_directory_in_use_are_both_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        lock.write(f"process 1 on here, {_boot()}")  # of this machine: no reason to try again
        lock.flush()
        argv = ["train", *FLAGS, "--workdir", str(tmp_path / "run")]
        processes = [_start([*argv, *flags], 1, tmp_path / f"{i}.json") for i, flags in enumerate(_joined(2))]
        outputs = [process.communicate(timeout=600)[0].decode() for process in processes]
    for process, output in zip(processes, outputs):
        assert process.returncode == 2 and "in use by process 1 on here" in output and "[in-use: " in output


@pytest.mark.slow
def test_two_processes_score_a_checkpoint_together(alone, tmp_path):
    argv = ["evaluate", "--checkpoint", str(alone), "--output", str(tmp_path / "scores.json")]
    reads = [tmp_path / f"{index}.json" for index in range(2)]
    outputs = _finish([_start([*argv, *flags], 1, path) for flags, path in zip(_joined(2), reads)])
    ours = json.loads((tmp_path / "scores.json").read_text())
    theirs = json.loads((alone / "evaluation.json").read_text())
    for name in ("All", "AP", "mIoU", "pictures"):
        assert ours[name] == theirs[name]
    assert "PQ" in outputs[0] and "PQ" not in outputs[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--coordinator=h:1"], "--num-processes, --process-id: missing"),
        (["--process-id=0"], "--coordinator, --num-processes: missing"),
        (["--distributed", "--num-processes=2"], "finds the other processes by itself"),
        (["--coordinator=h", "--num-processes=2", "--process-id=1"], "must be HOST:PORT, got 'h'"),
        (["--coordinator=h:1", "--num-processes=2", "--process-id=2"], r"--process-id: must be in 0 \.\. 1, got 2"),
    ],
)
def test_flags_that_do_not_go_together(argv, message):
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    with pytest.raises(UserError, match=message):
        distributed.join(parser.parse_args(argv))


def test_a_single_process_joins_nobody():
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    distributed.join(parser.parse_args([]))
    assert jax.process_count() == 1


def test_distributed_outside_of_any_job_says_what_to_give():
    code = "import sys; from pfcn_jax.main import main; sys.exit(main(sys.argv[1:]))"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMPI"))}
    ran = subprocess.run(
        [sys.executable, "-c", code, "train", TINY[0], "--distributed"],
        cwd=ROOT,
        env={**clean, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 2 and "nothing tells which processes belong together" in ran.stderr
    assert "--coordinator" in ran.stderr and "Traceback" not in ran.stderr
