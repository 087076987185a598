"""A name becomes a checkpoint: fetched, converted once, found again, removed; and every door takes it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.format import CheckpointError, load_meta
from pfcn_jax.checkpoints.loading import initialize_from, load_checkpoint
from pfcn_jax.checkpoints.named import checkpoint_of, resolve
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.interop import zoo
from pfcn_jax.interop.convert import from_params
from pfcn_jax.interop.download import Cache
from pfcn_jax.interop.names import ModelFacts
from pfcn_jax.interop.writer import write_state_dict
from pfcn_jax.models.build import build_model
from pfcn_jax.models.panoptic_fcn import init_variables

NARROW = {"backbone": "resnet50", "backbone_width": 8, "fpn_channels": 32, "head_channels": 32, "kernel_channels": 32}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> pathlib.Path:
    """A narrow model under the original's names, as its authors would serve it."""
    options = dataclasses.replace(Config().model, **NARROW)
    model = build_model(options, *coco_classes().counts)
    shapes = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0.0, 0.01, leaf.shape).astype(np.float32), shapes)
    path = tmp_path_factory.mktemp("served") / "toy.pth"
    write_state_dict(path, from_params(variables, ModelFacts(options, *coco_classes().counts)))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch, weights_file) -> Cache:
    """A cache in which the file of `panoptic-fcn-r50-3x-fast` was put by hand, and no network."""
    monkeypatch.setenv("PFCN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PFCN_OFFLINE", "1")
    found = Cache.default()
    target = found.path_of(zoo.find("panoptic-fcn-r50-3x-fast"))
    target.parent.mkdir(parents=True)
    shutil.copy(weights_file, target)
    return found


def test_a_name_is_converted_once_with_its_config(cache):
    entry = zoo.find("panoptic-fcn-r50-3x-fast")
    first = checkpoint_of(entry, cache)
    written = sorted((path, path.stat().st_mtime_ns) for path in first.rglob("*"))
    assert checkpoint_of(entry, cache) == first == resolve(pathlib.Path(entry.name))
    assert sorted((path, path.stat().st_mtime_ns) for path in first.rglob("*")) == written
    loaded = load_checkpoint(pathlib.Path(entry.name))
    config = loaded.config
    assert config.name == entry.name and config.model.backbone_width == 8
    assert (config.inference.center_threshold, config.inference.stuff_threshold) == (0.2, 0.1)
    assert (config.data.eval_short_side, config.data.eval_max_long_side) == (800, 1333)
    assert loaded.classes == coco_classes()
    assert [entry.name for entry in first.parent.iterdir()] == [first.name], "something is left aside"


def test_a_run_starts_from_a_name(cache):
    loaded = load_checkpoint(pathlib.Path("panoptic-fcn-r50-3x-fast"))
    fresh = jax.tree.map(np.zeros_like, loaded.variables)
    merged, notes = initialize_from(pathlib.Path("panoptic-fcn-r50-3x-fast"), fresh, loaded.config, fresh_heads=False)
    assert notes == []
    jax.tree.map(np.testing.assert_array_equal, merged, dict(loaded.variables))


def test_what_is_neither_a_path_nor_a_name_is_refused(cache):
    with pytest.raises(CheckpointError, match="panoptic-fcn-r50-3x"):
        resolve(pathlib.Path("panoptic-fcn-r50-4x"))
    with pytest.raises(CheckpointError, match="weights list"):
        resolve(pathlib.Path("zzz"))
    assert resolve(pathlib.Path("runs/nothing")) == pathlib.Path("runs/nothing")  # the loader says what is missing


def test_the_verb_lists_verifies_and_removes(cache, capsys):
    name = "panoptic-fcn-r50-3x-fast"
    assert front_door.main(["weights", "path", name]) == 0
    folder = pathlib.Path(capsys.readouterr().out.strip())
    assert load_meta(folder / "checkpoints" / "0")["kind"] == "model"
    assert front_door.main(["weights", "list"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in zoo.TABLE) and str(cache.root) in listing
    assert front_door.main(["weights", "verify", name]) == 0
    cache.path_of(zoo.find(name)).write_bytes(b"other bytes")
    assert front_door.main(["weights", "verify", name]) == 1
    assert "recorded" in capsys.readouterr().err
    assert front_door.main(["weights", "remove", name]) == 0
    assert not folder.exists() and not cache.path_of(zoo.find(name)).exists()
    assert front_door.main(["weights", "get", name]) == 2
    assert "PFCN_OFFLINE" in capsys.readouterr().err


def test_removing_a_name_leaves_names_that_begin_alike(cache, capsys):
    copies = [
        f"panoptic-fcn-r50-3x{rest}" for rest in (f"-{'a' * 16}-v1", f"-{'b' * 16}-v2.77", f"-fast-{'a' * 16}-v1")
    ]
    for name in copies:
        (cache.root / "converted" / name).mkdir(parents=True)
    assert front_door.main(["weights", "remove", "panoptic-fcn-r50-3x"]) == 0
    assert [path.name for path in (cache.root / "converted").iterdir()] == copies[2:]
    path = cache.path_of(zoo.find("panoptic-fcn-r50-3x"))
    assert path.exists() and f"{path} stays: panoptic-fcn-r50-3x-fast was made from it" in capsys.readouterr().err
