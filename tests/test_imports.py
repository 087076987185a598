"""Modules that `from pfcn_jax import load` imports: what loading and predicting need, nothing of other verbs."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from pfcn_jax.commands import VERBS, module_of
from pfcn_jax.main import main

ROOT = pathlib.Path(__file__).parents[1]
OF_OTHER_VERBS = {
    "array_record", "grain", "jinja2", "matplotlib", "ml_collections", "pandas", "platformdirs", "pyarrow",
    "pycocotools", "ray", "requests", "starlette", "tensorboardX", "tensorflow", "tensorflow_datasets",
    "torch", "uvicorn",
}  # fmt: skip


def _imported(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_import_of_the_package_imports_no_jax():
    assert not _imported("from pfcn_jax import load") & (OF_OTHER_VERBS | {"jax", "flax", "numpy", "orbax"})


def test_load_imports_nothing_of_other_verbs():
    found = _imported("from pfcn_jax import load, Model, Result")
    assert {"jax", "flax", "numpy", "PIL", "orbax"} <= found
    assert not found & OF_OTHER_VERBS


@pytest.mark.parametrize(
    ("verb", "needed"),
    [
        ("curves", {"numpy"}),
        ("card", set()),
        ("convert", set()),
        ("export", set()),
        ("prepare", {"pycocotools"}),
        ("predict", set()),
    ],
)
def test_a_verb_imports_what_it_needs(verb, needed):
    assert verb in VERBS
    assert not _imported(f"import {module_of(verb)}") & (OF_OTHER_VERBS - needed)


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert main(["curves", str(tmp_path), "--output", str(tmp_path / "curves.png")]) == 2
    assert "[plots]" in capsys.readouterr().err
