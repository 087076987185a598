"""The house: imports run one way, rooms do not import each other, files can be read in one sitting."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "pfcn_jax"
# Each layer may import the layers below it, and of its own layer what is named beside a room.
LAYERS: tuple[dict[str, set[str]], ...] = (
    {"types": set(), "errors": set(), "codec": {"errors"}},
    {"utils": set(), "parallel": set()},
    {"data": set(), "models": set(), "panoptic": set(), "metrics": set(), "interop": {"models"}, "optim": {"models"}},
    {"config": set()},
    {"steps": set(), "checkpoints": set()},
    {"viz": set()},
    {"inference": set(), "evaluation": set(), "export": {"inference"}, "training": {"evaluation"}},
    {"apps": {"inference", "evaluation"}},
    {"commands": set()},
    {"studies": {"commands"}},  # tools for researchers: nothing imports them but main, by name
)
OPEN = {"__init__": {"inference", "errors", "types"}, "main": {"commands", "errors", "utils"}}
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


def _allowed(room: str) -> set[str]:
    if room in OPEN:
        return OPEN[room]
    level = next(level for level, rooms in enumerate(LAYERS) if room in rooms)
    return {room} | LAYERS[level][room] | {below for rooms in LAYERS[:level] for below in rooms}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    used = _rooms_used(path)
    assert used <= _allowed(_room(path)), f"{path.name} imports {sorted(used - _allowed(_room(path)))}"


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


def test_studies_import_nothing_of_each_other():
    for path in (PACKAGE / "studies").glob("*/*.py"):
        others = {name.split(".")[2] for name in _imports(path) if name.startswith("pfcn_jax.studies.")}
        shared = {file.stem for file in (PACKAGE / "studies").glob("*.py")}
        assert others <= shared | {path.parent.name}, path


def test_only_interop_may_know_torch():
    for path in FILES:
        if _room(path) != "interop":
            assert not any(name.split(".")[0] == "torch" for name in _imports(path)), path


def test_the_train_path_never_loads_tensorflow():
    code = "import sys, pfcn_jax.training.trainer; sys.exit('tensorflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_main_is_short():
    assert len((PACKAGE / "main.py").read_text().splitlines()) < 100


MAX_PARAMETERS = 8
# To shrink, never to grow: (file, function) with `**settings: Any`.
ANY_SETTINGS = {
    ("__init__.py", "load"),  # config keys by their names: checked against the schema
    ("data/datasets/tfds.py", "__init__"),  # TFDS makes its own copies of a builder, with its own arguments
    ("viz/page.py", "render"),  # values of a template
}


def test_settings_are_objects():
    any_settings = set()
    for path in FILES:
        name = str(path.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = node.args
            stars = [star for star in (given.vararg, given.kwarg) if star is not None]
            count = len([*given.posonlyargs, *given.args, *given.kwonlyargs, *stars])
            assert count <= MAX_PARAMETERS, f"{name}: {node.name} has {count} parameters"
            annotation = given.kwarg.annotation if given.kwarg is not None else None
            if annotation is not None and ast.unparse(annotation) == "Any":
                any_settings.add((name, node.name))
    assert any_settings == ANY_SETTINGS
