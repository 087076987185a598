"""The house: imports run one way, rooms do not import each other, files can be read in one sitting."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "pfcn_jax"
LEAVES = {"types", "errors", "codec"}  # may be imported from everywhere, import no room
ROOMS = {"data", "models", "panoptic", "metrics", "interop", "export", "viz"}
MAX_LINES = 400
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: pathlib.Path) -> set[str]:
    """Dotted names of everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _rooms_used(path: pathlib.Path) -> set[str]:
    return {name.split(".")[1] for name in _imports(path) if name.startswith("pfcn_jax.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room, used = _room(path), _rooms_used(path)
    if room in LEAVES:
        allowed: set[str] = LEAVES
    elif room in ROOMS:
        allowed = LEAVES | {room}
    elif room == "engine":
        allowed = LEAVES | ROOMS | {"engine"}
    elif room == "main":
        allowed = {"engine", "errors"}
    else:
        assert room == "__init__", f"{path}: an unknown room"
        allowed = LEAVES | ROOMS | {"engine"}
    assert used <= allowed, f"{path.name} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_say_what_lives_there_and_stay_short(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert len(text.splitlines()) <= MAX_LINES


def test_the_method_knows_no_flax_module_and_the_data_no_jax():
    for path in (PACKAGE / "panoptic").glob("*.py"):
        assert not any(name.startswith(("flax.linen", "ml_collections", "absl")) for name in _imports(path)), path
    for path in (PACKAGE / "data").glob("*.py"):
        assert not any(name.split(".")[0] in ("jax", "flax", "torch", "tensorflow") for name in _imports(path)), path


def test_only_interop_may_know_torch():
    for path in FILES:
        if _room(path) != "interop":
            assert not any(name.split(".")[0] == "torch" for name in _imports(path)), path


def test_the_train_path_never_loads_tensorflow():
    code = "import sys, pfcn_jax.training.trainer; sys.exit('tensorflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_main_is_short():
    assert len((PACKAGE / "main.py").read_text().splitlines()) < 100
