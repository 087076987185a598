"""Every config file passes the door and makes a network; every key of the schema is read by the code."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import jax
import pytest

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.models.build import abstract_variables, build_model
from pfcn_jax.training.state import build_optimizer

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_makes_a_network_and_an_optimiser(path):
    config = from_command_line([f"--config={path}"])
    assert config.name == path.stem
    model = build_model(config.model, *coco_classes().counts)
    variables = abstract_variables(model)
    state = jax.eval_shape(build_optimizer(config, model).init, variables["params"])
    assert jax.tree.leaves(state)
    assert "Command:" in path.read_text().split('"""')[1]


def test_every_key_is_read():
    files = [path for path in (ROOT / "pfcn_jax").rglob("*.py") if path.name not in ("schema.py", "options.py")]
    code = "\n".join(path.read_text() for path in files)
    for section in dataclasses.fields(Config):
        keys = getattr(Config(), section.name)
        if not dataclasses.is_dataclass(keys):
            assert re.search(rf"config\.{section.name}\b", code), section.name
        else:
            for key in dataclasses.fields(keys):
                assert re.search(rf"\.{key.name}\b", code), f"config.{section.name}.{key.name} is never read"
