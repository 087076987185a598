"""`export`: one file that runs without this package, parameters alone, and what is said when something differs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import pfcn_jax
from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.data.transforms import resized_size
from pfcn_jax.errors import UserError
from pfcn_jax.export.compare import compare
from pfcn_jax.export.container import META, write_container
from pfcn_jax.export.run_exported import choose
from pfcn_jax.export.writing import flatten, program_shapes
from tests.support.tiny import TINY, write_tiny_model

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    with jax.numpy_dtype_promotion("standard"):
        return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.fromarray(Scenes("val", size=(90, 120))[3].image).save(path)
    return path


@pytest.fixture(scope="module")
def program(checkpoint, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("exported") / "model.pfcn"
    assert export(checkpoint, path, "--output-sides", "640") == 0
    return path


def export(checkpoint: pathlib.Path, output: pathlib.Path, *argv: str | pathlib.Path) -> int:
    return front_door.main(["export", "--checkpoint", str(checkpoint), "--output", str(output), *map(str, argv)])


@pytest.mark.slow
def test_the_program_runs_where_there_is_nothing_but_jax(program, checkpoint, scene, tmp_path):
    """The script from inside the file, in a process where this package and Flax cannot be imported."""
    with zipfile.ZipFile(program) as archive:
        script = pathlib.Path(archive.extract("run_exported.py", tmp_path))
    code = (
        "import sys, runpy\n"
        "for name in ('pfcn_jax', 'flax', 'orbax', 'cv2', 'optax', 'ml_collections'): sys.modules[name] = None\n"
        "script, *sys.argv = sys.argv[1:]; sys.argv.insert(0, script); runpy.run_path(script, run_name='__main__')"
    )
    argv = [sys.executable, "-I", "-c", code, script, program, scene, tmp_path / "segments.png"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    done = subprocess.run(list(map(str, argv)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    live = pfcn_jax.load(checkpoint)(scene)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == [segment.class_name for segment in live.segments] and len(lines) > 3
    assert [line[4] for line in lines] == [str(segment.area) for segment in live.segments]
    colors = np.array([(0, 0, 0), *(live.classes.colors[segment.class_id] for segment in live.segments)])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "segments.png")), colors[live.segment_map])


def test_the_file_is_plain_and_says_everything(program, checkpoint):
    loaded = load_checkpoint(checkpoint)
    file = np.load(program)  # allow_pickle is False
    weights = {name.removeprefix("weights/"): file[name] for name in file.files if name.startswith("weights/")}
    for name, array in flatten(loaded.variables).items():
        np.testing.assert_array_equal(weights.pop(name), array)
    assert not weights
    meta = json.loads(file[META])
    assert [entry["name"] for entry in meta["classes"]] == list(loaded.classes.names)
    assert [tuple(entry["color"]) for entry in meta["classes"]] == list(loaded.classes.colors)
    assert meta["config"]["name"] == loaded.config.name and meta["versions"]["jax"] == jax.__version__
    assert meta["platforms"] == ["cpu", "cuda", "tpu"] and meta["pixels"]["order"] == loaded.config.model.pixel_order
    assert [(entry["canvas"], entry["output"]) for entry in meta["programs"]] == [([64, 64], [640, 640])]
    with zipfile.ZipFile(program) as archive:
        assert archive.testzip() is None
        assert {info.filename.rsplit(".", 1)[1] for info in archive.infolist()} == {"json", "py", "bin", "npy"}


@pytest.mark.slow
def test_photos_get_the_segments_of_the_live_model(checkpoint, image_data_dir, tmp_path, capsys):
    photos, report = image_data_dir / "two_photos" / "images", tmp_path / "report.json"
    argv = ["--output-sides", "640", "--compare", photos, "--report", report]
    assert export(checkpoint, tmp_path / "model.pfcn", *argv) == 0
    found = json.loads(report.read_text())
    assert (found["pictures"], found["same"]) == (2, 2) and found["segments"] > 4
    assert found["bytes"] == (tmp_path / "model.pfcn").stat().st_size
    assert "2 of 2 images have the same segments" in capsys.readouterr().out


def test_differences_are_found(scene):
    ground = np.zeros((10, 100), np.int32)
    changed = ground.copy()
    changed[0, 0] = 1
    images = [("scene", ground)]
    cases = [((ground, [1]), True), ((changed, [1]), False), ((ground, [2]), False), ((ground, [1, 2]), False)]
    for other, same in cases:
        (found,) = compare(lambda image: (ground, [1]), lambda image, other=other: other, images, [])
        assert found.same is same

    def too_large(image):
        raise ValueError("no program for it")

    broken: list[str] = []
    assert not list(compare(lambda image: (ground, [1]), too_large, images, broken))
    assert broken == ["scene: no program for it"]


@pytest.mark.parametrize("name", ["model.safetensors", "folder"])
def test_parameters_alone_come_back_as_they_were(name, checkpoint, tmp_path):
    assert export(checkpoint, tmp_path / name, "--config.inference.merge_score=0.125") == 0
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / name)
    assert after.classes == before.classes and after.config.inference.merge_score == 0.125
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
    assert jax.tree.structure(after.variables) == jax.tree.structure(before.variables)
    if name == "folder":
        assert export(checkpoint, tmp_path / name) == 2  # no checkpoint is overwritten
    else:
        model = pfcn_jax.load(tmp_path / name, merge_score=0.5)
        assert model.config.inference.merge_score == 0.5 and "model.safetensors" in repr(model)


def test_safetensors_of_others_are_refused(checkpoint, tmp_path):
    save_file({"stem.conv1.weight": np.zeros(3, np.float32)}, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=r"theirs.safetensors: not written by `export`.*convert"):
        load_checkpoint(tmp_path / "theirs.safetensors")
    assert export(checkpoint, tmp_path / "ours.safetensors") == 0
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "ours.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut.safetensors: cannot be read"):
        load_checkpoint(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"none\.safetensors:"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_the_script_places_images_as_the_pipeline_does():
    config = from_command_line([f"--config={ROOT / 'configs' / 'panoptic_fcn_r50.py'}"])
    shapes = program_shapes(config, (1024, 4096), (2, 1))
    assert [shape.batch for shape in shapes] == [1] * 8 + [2] * 8
    programs = [{"canvas": list(shape.canvas), "output": list(shape.output)} for shape in shapes]
    meta = {"resize_to": [config.data.eval_short_side, config.data.eval_max_long_side], "programs": programs}
    rng = np.random.default_rng(0)
    shaped = [(480, 640), (1, 4000), (4000, 1), (800, 800), (333, 333)]
    for original in [*shaped, *map(tuple, rng.integers(1, 4096, (500, 2)).tolist())]:
        size, program = choose(meta, original)
        assert tuple(size) == resized_size(original, 800, 1333)
        sides = np.array([size, original])
        room = [shape for shape in shapes if (sides <= np.array([shape.canvas, shape.output])).all()]
        assert program["canvas"] == list(room[0].canvas) and program["output"] == list(room[0].output)
    with pytest.raises(ValueError, match="fits into none"):
        choose(meta, (100, 5000))


def test_canvases_are_added_where_the_configs_do_not_hold_every_image():
    config = from_command_line([*TINY, "--config.data.eval_max_long_side=100"])
    assert [shape.canvas for shape in program_shapes(config, (640,), (1,))] == [(64, 64), (64, 128), (128, 64)]


def test_a_container_is_whole_or_not_there(tmp_path):
    weights = {"weights/a/b": np.arange(6, dtype=np.int32).reshape(2, 3), "weights/c": np.float32(2.5)}
    for name in ("one", "two"):
        write_container(tmp_path / name, meta={"name": "x"}, programs={"programs/p.bin": b"\0\1"}, weights=weights)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    file = np.load(tmp_path / "one")
    assert file["programs/p.bin"] == b"\0\1" and file["weights/c"].shape == () and file["weights/a/b"][1, 2] == 5
    with pytest.raises(UserError, match="cannot be written"):
        write_container(tmp_path / "one" / "below", meta={}, programs={}, weights={})
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_container(tmp_path / "three", meta={}, programs={}, weights={"weights/o": np.array([None])})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("output", "argv", "message"),
    [
        ("model.bin", [], "unknown ending; name a --format"),
        ("model.pfcn", ["--report", "x.json"], "name images to --compare"),
        ("model.pfcn", ["--batch-sizes", "0"], "--batch-sizes: must be at least 1"),
        ("model.onnx", ["--canvas", "33", "64"], "multiples of 32"),
        ("model.onnx", ["--config.tta.flip=True"], "--config.tta.flip=False, or as .pfcn"),
        ("model.pfcn", ["--config.model.encoder_channels=16"], "config.model.encoder_channels"),
    ],
)
def test_bad_flags_are_one_clear_line(output, argv, message, checkpoint, tmp_path, capsys):
    assert export(checkpoint, tmp_path / output, *argv) == 2
    assert message in capsys.readouterr().err


def test_onnx_without_its_package_says_what_to_install(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(checkpoint, tmp_path / "model.onnx") == 2
    assert "pip install onnx" in capsys.readouterr().err and not list(tmp_path.iterdir())
