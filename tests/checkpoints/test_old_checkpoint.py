"""A run and an exported program of an older commit load, resume and score as they did there (old_run/README.md)."""

from __future__ import annotations

import json
import lzma
import os
import pathlib
import subprocess
import sys
import tarfile
from importlib import metadata
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax.checkpoints.format import load_stored
from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.checkpoints.manifest import find_damage
from pfcn_jax.export import run_exported

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path(__file__).with_name("old_run")
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())


def _is_the_recording_machine() -> bool:
    """The same processor and libraries: then every bit must be the same."""
    info = pathlib.Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    versions = all(metadata.version(name) == EXPECTED["machine"][name] for name in ("jax", "jaxlib"))
    return cpu == EXPECTED["machine"]["cpu"] and os.cpu_count() == EXPECTED["machine"]["cores"] and versions


def _assert_same(ours: Any, theirs: Any, name: str = "") -> None:
    """Compares JSON values: equal on the recording machine, close elsewhere."""
    if isinstance(theirs, dict):
        assert set(theirs) <= set(ours), name
        for key, value in theirs.items():
            _assert_same(ours[key], value, f"{name}/{key}")
    elif _is_the_recording_machine() or not isinstance(theirs, float):
        assert ours == theirs, name
    else:
        assert ours == pytest.approx(theirs, rel=1e-3), name


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """The working directory after step 3."""
    with tarfile.open(FOLDER / "run.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def _main(*words: str) -> None:
    """Runs a command on one device, as the older commit did."""
    cache = pathlib.Path(str(jax.config.jax_compilation_cache_dir)) / "old_checkpoint"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "pfcn_jax.main", *words]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "WARNING" not in ran.stderr


def test_it_is_intact_and_loads(run, caplog):
    checkpoint = run / "checkpoints" / "3"
    assert find_damage(checkpoint) == []
    with caplog.at_level("WARNING"):
        loaded = load_checkpoint(run)
        training = load_stored(checkpoint, "training")
    assert not caplog.records
    assert loaded.path == checkpoint and loaded.config.name == "tiny" and int(training["step"]) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.variables))


@pytest.mark.slow
def test_it_resumes_with_the_recorded_losses_and_scores(run):
    _main("train", *EXPECTED["train"], "--workdir", str(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {str(line["step"]): line for line in lines if "loss" in line}
    assert list(losses) == ["1", "2", "3", "4", "5", "6"]
    _assert_same(losses, EXPECTED["steps"])
    _assert_same(json.loads((run / "evaluation.json").read_text()), EXPECTED["evaluation_of_step_6"])


@pytest.mark.slow
def test_it_evaluates_to_the_recorded_scores(run, tmp_path):
    _main("evaluate", "--checkpoint", str(run), "--output", str(tmp_path / "scores.json"))
    _assert_same(json.loads((tmp_path / "scores.json").read_text()), EXPECTED["evaluation_of_step_3"])


@pytest.mark.slow
def test_the_exported_program_finds_the_recorded_segments(tmp_path):
    path = tmp_path / "tiny.pfcn"
    path.write_bytes(lzma.decompress((FOLDER / "tiny.pfcn.xz").read_bytes()))
    image = np.array(Image.open(FOLDER / "scene.png").convert("RGB"))
    segment_map, segments = run_exported.segment(*run_exported.load(path), image)
    ids = np.array(Image.open(FOLDER / "ids.png"))
    assert np.mean(segment_map != ids) <= (0.0 if _is_the_recording_machine() else 0.01)
    _assert_same(dict(enumerate(segments)), dict(enumerate(EXPECTED["segments"])))
