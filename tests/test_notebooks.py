"""The notebooks: committed without outputs, with one home, and run from top to bottom on small data."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tomllib

import pytest

from pfcn_jax import main as front_door
from pfcn_jax.config.command_line import from_command_line
from tests.documents import ROOT, links, spans
from tests.support.tiny import QUICK_COMPILER, TINY, write_tiny_model

NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
HOME = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Home"]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# Runs a notebook in the folder that it is called in, and writes it with its outputs.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": "."}})
try:
    client.execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text())


def sources(path: pathlib.Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == kind]


def test_they_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["convert", "method", "own_data", "start"]


@each_notebook
def test_no_output_is_committed(path):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(read(path))
    ids = [cell["id"] for cell in read(path)["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
            assert not cell["metadata"], cell["id"]


@each_notebook
def test_it_begins_with_a_badge_and_an_install_cell(path):
    badge, *_ = sources(path, "markdown")
    owner = HOME.removeprefix("https://github.com/")
    assert f"(https://colab.research.google.com/github/{owner}/blob/main/colabs/{path.name})" in badge.splitlines()[0]
    install, *_ = sources(path, "code")
    assert f'REPOSITORY = "{HOME}"' in install and "git" in install and "pip" in install
    assert install == sources(NOTEBOOKS[0], "code")[0], "the install cell is one and the same in all notebooks"


@each_notebook
def test_code_compiles_and_its_imports_exist(path):
    for code in sources(path, "code"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:  # a name in the module, or a module below it
                    below = (
                        importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                    )
                    assert hasattr(module, alias.name) or below, ast.unparse(node)


@each_notebook
def test_links_and_files_exist(path, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(sources(path, "markdown")))
    for target in links(page):
        assert target.startswith("https://") or (path.parent / target).is_file(), target
    for span in spans(page.read_text()):
        if span.startswith(("pfcn_jax/", "docs/", "configs/")):
            assert (ROOT / span).exists(), span


def test_home_is_one():
    assert f"link: {HOME}\n" in (ROOT / "mkdocs.yml").read_text()
    assert f'repository-code: "{HOME}"\n' in (ROOT / "CITATION.cff").read_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["start", "method"])
def test_without_a_checkpoint_they_train_one(name, monkeypatch):
    """Their training cell, with a `pfcn` that only takes down what it is asked for; `own_data` really trains."""
    monkeypatch.chdir(ROOT)
    for variable in ("PFCN_CHECKPOINT", "PFCN_FLAGS"):
        monkeypatch.delenv(variable, raising=False)
    cell = next(code for code in sources(ROOT / "colabs" / f"{name}.ipynb", "code") if "PFCN_CHECKPOINT" in code)
    asked: list[str] = []
    values = {"os": os, "pfcn": asked.append}
    exec(cell, values)
    args = front_door.parse(shlex.split(asked[0]))
    config = from_command_line(args.config_argv)
    assert args.workdir == values["CHECKPOINT"] and config.train.steps == values["STEPS"] > config.optim.warmup_steps


def small_data(name: str, tmp_path: pathlib.Path) -> dict[str, str]:
    """What keeps a run short: a tiny network, or a checkpoint of one."""
    if name in ("start", "method"):
        return {"PFCN_CHECKPOINT": str(write_tiny_model(tmp_path / "model"))}
    flags = [flag.replace(" ", "") for flag in TINY[1:]]
    return {"PFCN_FLAGS": shlex.join([*flags, "--config.train.steps=2"])} if name == "own_data" else {}


@pytest.mark.slow
@each_notebook
def test_it_runs_from_top_to_bottom(path, tmp_path):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package} (requirements-dev.txt)")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **QUICK_COMPILER, **small_data(path.stem, tmp_path)}
    done = tmp_path / "done.ipynb"
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(done)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    shown = [
        output
        for cell in read(done)["cells"]
        if cell["cell_type"] == "code"
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= {"start": 3, "method": 11, "own_data": 5, "convert": 1}[path.stem]
    assert not list((ROOT / "colabs").glob("runs")), "it wrote beside itself"
