"""`compile`: what it refuses, and (slow, with libtpu) that a small config's programs compile for a TPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from pfcn_jax.main import main
from tests.documents import ROOT
from tests.support.tiny import TINY

LIBTPU = ROOT / ".libtpu"  # pip install --target .libtpu -r requirements-tpu.txt


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5e"], "GENERATION:TORUS"),
        (["--topology", "v9:2x2"], "v5e:2x2"),
        (["--batch-per-chip", "0"], "at least 1"),
        (["--canvas", "60", "64"], "multiples of 32"),
        (["--read", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_cannot_be_compiled_is_said(words, message, capsys):
    assert main(["compile", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_compiler_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert main(["compile"]) == 2
    said = capsys.readouterr().err
    assert "pip install -r requirements-tpu.txt" in said and "[not-installed: " in said and said.count("\n") == 1


@pytest.mark.slow
def test_a_small_config_compiles_for_a_tpu(tmp_path):
    """In a process of its own: with libtpu in sight, JAX in the other tests would look for a TPU."""
    if not LIBTPU.is_dir() and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not there: pip install --target .libtpu -r requirements-tpu.txt")
    paths = [str(ROOT), str(LIBTPU), os.environ.get("PYTHONPATH", "")]
    words = [sys.executable, "-m", "pfcn_jax.main", "compile", "--topology", "v5e:2x2", *TINY]
    ran = subprocess.run(
        [*words, "--output", str(tmp_path / "r.json")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    train, predict = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (train["program"], predict["program"]) == ("train", "predict") and train["fits"] and predict["fits"]
    assert set(train["collectives"]) == {"all-reduce"} and not predict["collectives"]
    assert 2.0 < train["gflop_per_image"] / predict["gflop_per_image"] < 4.0
    taps = [loop for loop in predict["loops"] if loop["module"] == "position_head/conv1"]
    assert len(taps) == 5 and all(loop["trips"] == 9 for loop in taps)
    assert train["modules"]["backbone/res2_0"]["cycles"] > predict["modules"]["backbone/res2_0"]["cycles"] > 0
    assert "== train, v5e:2x2" in ran.stdout
