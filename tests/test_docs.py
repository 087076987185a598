"""The documents are true: every command parses, every key and file exists, every link resolves, all code compiles."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import os
import re
import tomllib

import pytest
import yaml

import pfcn_jax
from pfcn_jax import main as front_door
from pfcn_jax.commands import RENAMED_FLAGS
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.errors import ConfigError
from tests.documents import (
    PAGES,
    ROOT,
    Command,
    anchors,
    commands,
    fences,
    links,
    name_of,
    options_of,
    spans,
)

COMMANDS = [command for path in PAGES for command in commands(path)]
CONFIG_FILES = sorted((ROOT / "configs").glob("*.py"))
SECTIONS = {field.name for field in dataclasses.fields(Config)}
NOT_INSTALLED = {"fiftyone"}  # tests/inference/test_fiftyone_example.py runs its example with a stand-in
each_page = pytest.mark.parametrize("path", PAGES, ids=name_of)


def check(command: Command, monkeypatch) -> None:
    """The verb and its flags are known, required ones are there; the config file and the keys exist."""
    monkeypatch.chdir(ROOT)  # paths of configs are those from the root of the repository
    try:
        args = front_door.parse(["1" if re.fullmatch("[A-Z]", word) else word for word in command.argv])  # N, P, ...
    except SystemExit as stop:
        assert stop.code == 0, f"{command.page}: {command.text}"  # --help
        return
    if args.config_argv:  # those of verbs with a checkpoint change its config
        config = from_command_line(args.config_argv, Config())
        assert isinstance(config, Config)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text}"[:90])
def test_every_command_is_one_that_the_program_takes(command, monkeypatch):
    check(command, monkeypatch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_commands_are_found_and_mistakes_too(monkeypatch):
    pages = {command.page for command in COMMANDS}
    assert {"README.md", "docs/datasets.md", "docs/training.md", "docs/predict.md"} <= pages
    with pytest.raises(AssertionError):
        check(Command("x", "evaluate --chekpoint runs/r50"), monkeypatch)
    with pytest.raises(ConfigError, match="leraning_rate"):
        check(Command("x", "--config configs/quickstart.py --config.optim.leraning_rate=1.0"), monkeypatch)
    with pytest.raises(ConfigError, match="no such config file"):
        check(Command("x", "--config configs/quikstart.py"), monkeypatch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_the_command_at_the_head_of_a_config(path, monkeypatch):
    line = re.search(r"^Command: +python -m pfcn_jax.main (.*)$", path.read_text(), re.MULTILINE)
    assert line and f"configs/{path.name}" in line[1]
    check(Command(path.name, line[1]), monkeypatch)


def test_every_verb_is_documented():
    named = {word for command in COMMANDS for word in command.argv[:1]}
    assert set(front_door.VERBS) - {"train"} <= named, "a verb without a command in README.md or docs/"


@each_page
def test_links_and_anchors_resolve(path):
    for target in links(path):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), f"{name_of(path)}: {target}"
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{name_of(path)}: {target}"
        assert ROOT in page.parents, f"{name_of(path)}: {target} leaves the repository"
        assert not anchor or anchor in anchors(page), f"{name_of(path)}: {target}"


def _where_it_lives(module: str) -> str:
    """A script of `pfcn_jax/export` is imported by its own name where it is used."""
    return f"pfcn_jax.export.{module}" if (ROOT / "pfcn_jax/export" / f"{module}.py").exists() else module


@each_page
def test_python_compiles_and_its_imports_exist(path):
    for language, code in fences(path.read_text()):
        if language != "python":
            continue
        tree = ast.parse(code, filename=name_of(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in (alias for alias in node.names if alias.name not in NOT_INSTALLED):
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] != "configs":
                module = importlib.import_module(_where_it_lives(node.module or ""))
                for alias in node.names:
                    below = (
                        importlib.util.find_spec(f"{node.module}.{alias.name}") if hasattr(module, "__path__") else None
                    )
                    assert hasattr(module, alias.name) or below, f"{name_of(path)}: {node.module}.{alias.name}"


def _is_key(span: str) -> str | None:
    match = re.fullmatch(r"(?:--config\.)?((\w+)\.\w+)(?: ?=.*)?", span)
    is_file = re.search(r"\.(pfcn|safetensors|onnx|yaml|json)$", span)
    return match[1] if match and match[2] in SECTIONS and not is_file else None


def _has_key(dotted: str) -> bool:
    section, name = dotted.split(".")
    return name in {field.name for field in dataclasses.fields(getattr(Config(), section))}


@each_page
def test_what_stands_in_code_type_exists(path):
    """Keys of the config, flags, files of the repository, and verbs with their flags."""
    everywhere = {flag for verb in front_door.VERBS for flag in options_of(verb)}
    for span in spans(path.read_text()):
        where = f"{name_of(path)}: {span}"
        if key := _is_key(span):
            assert _has_key(key) or (ROOT / "pfcn_jax" / key.replace(".", "/")).with_suffix(".py").exists(), where
        elif match := re.match(r"(--[a-z][a-z-]*)(?= |$)", span):
            assert match[1] in everywhere | {"--config", "--help", *RENAMED_FLAGS}, where
        elif re.fullmatch(r"(configs|pfcn_jax|launch|tests|docs|colabs)/[\w./-]+\.\w+", span):
            assert (ROOT / span).exists(), where
        elif span.split()[0] in front_door.VERBS and "--" in span:
            known = options_of(span.split()[0])
            for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", span):
                assert flag in known or flag == "--config", where


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == pfcn_jax.__version__ and citation["license"] == project["license"]
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2012.00720"


@each_page
def test_scripts_that_are_called_can_be(path):
    for script in set(re.findall(r"(?:^|[\s`])(launch/\w+\.sh)", path.read_text())):
        assert os.access(ROOT / script, os.X_OK), f"{name_of(path)}: {script}"
