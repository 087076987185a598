"""A name becomes a checkpoint: fetched, converted once, found again, removed; and every door takes it."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints import named
from pfcn_jax.checkpoints.format import CheckpointError, load_meta
from pfcn_jax.checkpoints.loading import initialize_from, load_checkpoint
from pfcn_jax.checkpoints.named import checkpoint_of, resolve
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.errors import UserError
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


# ------------------------------------------------------------------------------------------------------- every verb
@pytest.fixture
def served(weights_file, tmp_path, monkeypatch) -> str:
    """The name of a model that a server on loopback has; nothing is in the cache."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=weights_file.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PFCN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PFCN_OFFLINE", raising=False)
    entry = zoo.find("panoptic-fcn-r50-1x")
    url = f"http://127.0.0.1:{server.server_address[1]}/{weights_file.name}"
    monkeypatch.setitem(zoo.TABLE, entry.name, dataclasses.replace(entry, urls=(url,)))
    yield entry.name
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_name_is_exported_and_described(served, tmp_path):
    output = tmp_path / "model.safetensors"
    assert front_door.main(["export", "--checkpoint", served, "--output", str(output)]) == 0
    ours, theirs = load_checkpoint(output), load_checkpoint(pathlib.Path(served))
    assert ours.config == theirs.config and ours.config.name == served
    jax.tree.map(np.testing.assert_array_equal, ours.variables["params"], theirs.variables["params"])
    assert front_door.main(["card", "--checkpoint", served, "--output", str(tmp_path / "card.md")]) == 0
    card = (tmp_path / "card.md").read_text()
    assert served in card and "license: apache-2.0" in card


@pytest.mark.parametrize("verb", ["predict", "evaluate", "export", "card", "demo", "explain", "benchmark"])
def test_every_verb_takes_a_name(verb, tmp_path, capsys, monkeypatch):
    """Up to the place where all names are resolved; what comes after is that of any checkpoint."""
    if verb == "demo":
        pytest.importorskip("uvicorn", reason="pip install -r requirements-demo.txt")
        pytest.importorskip("starlette", reason="pip install -r requirements-demo.txt")
    image = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(image)
    words = {
        "predict": ["--output", str(tmp_path), str(image)],
        "export": ["--output", str(tmp_path / "model.pfcn")],
        "card": ["--output", str(tmp_path / "card.md")],
        "explain": ["--output", str(tmp_path), str(image)],
        "benchmark": ["network"],
    }

    def asked(entry: zoo.Weights, cache: Cache) -> pathlib.Path:
        raise UserError(f"asked for {entry.name}")

    monkeypatch.setattr(named, "checkpoint_of", asked)
    assert front_door.main([verb, *words.get(verb, []), "--checkpoint", "panoptic-fcn-r50-1x"]) == 2
    assert "asked for panoptic-fcn-r50-1x" in capsys.readouterr().err
