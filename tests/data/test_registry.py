"""data/registry.py: a data set registers itself and is found by name or by module."""

from __future__ import annotations

import sys

import pytest

from pfcn_jax.config.schema import from_dict
from pfcn_jax.data.inputs import open_evaluation, open_training
from pfcn_jax.data.registry import BUILT_IN, check_source, find_dataset, list_splits, register
from pfcn_jax.errors import ConfigError

TOY = """
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.registry import register

@register("toy", splits=lambda root: ["train", "val"], reads_root=False)
def open_toy(options, split):
    return Scenes(split, size=options.scene_size, length=7)
"""


@pytest.fixture
def toy_module(tmp_path, monkeypatch):
    (tmp_path / "toy_sets").mkdir()
    (tmp_path / "toy_sets/toys.py").write_text(TOY)
    (tmp_path / "toy_sets/nothing.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_sets.toys"
    for name in [name for name in sys.modules if name.startswith("toy_sets")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_names_are_registered_by_the_file_of_that_name(name):
    found = find_dataset(name)
    assert (found.name, found.module) == (name, f"pfcn_jax.data.datasets.{name}")


@pytest.mark.parametrize("suffix", ["", ":toy"])
def test_a_data_set_outside_of_the_package_needs_one_line_of_config(toy_module, suffix):
    config = from_dict({"data": {"source": toy_module + suffix, "scene_size": (64, 96)}})
    source = open_training(config.data)
    assert len(source) == 7 and source[0].size == (64, 96)
    assert len(open_evaluation(config.data, 3)) == 3
    assert list_splits(config.data.source, "") == ["train", "val"]


def test_what_cannot_be_found_names_the_key_and_the_known_sets(toy_module):
    for source in ("kitti", "", "a b.c", ":x", "x:"):
        with pytest.raises(ConfigError, match=r"config\.data\.source.*ade20k, cityscapes, coco"):
            from_dict({"data": {"source": source}})
    with pytest.raises(ConfigError, match="did you mean 'mapillary'"):
        check_source("mapilary")
    for source in ("no_such.module", "toy_sets.nothing", f"{toy_module}:other"):
        check_source(source)  # nothing is imported yet: a checkpoint loads without its data set
        with pytest.raises(ConfigError, match=r"config\.data\.source"):
            find_dataset(source)


def test_two_files_cannot_register_one_name():
    find_dataset("coco")
    with pytest.raises(ValueError, match="'coco'"):
        register("coco", splits=lambda root: [])(lambda options, split: None)
