"""The programs from end to end on a tiny network: train, resume, evaluate, predict, inspect."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.format import CheckpointError
from pfcn_jax.checkpoints.loading import load_checkpoint
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.training.trainer import Trainer
from tests.support.tiny import EAGER_FLAGS, TINY

# Checkpoints at steps 2 and 4; with averaged weights, so that each test also sees them.
RUN = [
    *(*TINY, *EAGER_FLAGS),
    "--config.train.steps=4",
    "--config.train.checkpoint_every=2",
    "--config.train.ema_decay=0.5",
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    # Optax raises a float to an integer power (adam's bias correction).
    with jax.numpy_dtype_promotion("standard"):
        yield


def _run(*argv: str) -> int:
    return front_door.main(list(argv))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A finished run of four steps with a checkpoint at steps 2 and 4."""
    path = tmp_path_factory.mktemp("run")
    assert _run("train", *RUN, "--workdir", str(path)) == 0
    return path


def test_a_run_leaves_everything_behind(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [1, 2, 3, 4]
    for name in ("loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st", "images_per_second", "learning_rate"):
        assert np.isfinite(lines[0][name])
    assert lines[0]["loss"] == pytest.approx(
        sum(lines[0][name] for name in ("loss_pos_th", "loss_pos_st", "loss_seg_th", "loss_seg_st")), rel=1e-5
    )
    assert list((workdir / "tensorboard").iterdir())
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation["pictures"] == 3 and set(evaluation) >= {"All", "Things", "Stuff", "per_class", "AP", "mIoU"}
    assert len(evaluation["per_class"]) == 10
    assert len(list((workdir / "pictures").glob("*.png"))) == 2
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_bits(workdir, tmp_path):
    config = from_command_line(RUN)

    class Stopped(Exception):
        pass

    class StoppingTrainer(Trainer):
        def save(self, step):
            super().save(step)
            if step == 2:
                self.checkpoints.wait()
                raise Stopped

    with pytest.raises(Stopped):
        StoppingTrainer(config, tmp_path).run()
    resumed = Trainer(config, tmp_path)
    assert int(resumed.state.step) == 2 and resumed.batches.get_state()["batch"] == 2
    resumed.run()
    ours, theirs = Trainer(config, tmp_path).state, Trainer(config, workdir).state
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def test_the_model_of_a_checkpoint_is_the_averaged_one(workdir):
    state = Trainer(from_command_line(RUN), workdir).state
    kept = load_checkpoint(workdir / "checkpoints" / "4").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(state.average))
    apart = jax.tree.map(lambda kept, raw: np.abs(kept - np.asarray(raw)).max(), kept, state.params)
    assert max(jax.tree.leaves(apart)) > 1e-6  # the warm-up has hardly begun: the steps are small


@pytest.mark.parametrize(
    ("override", "before"),
    [("train.ema_decay=0.0", "0.5"), ("optim.name=sgd", "'adamw'"), ("optim.frozen=('backbone',)", "()")],
)
def test_a_state_of_another_kind_is_not_continued(workdir, capsys, override, before):
    assert _run("train", *RUN, f"--config.{override}", "--workdir", str(workdir)) == 2
    message = capsys.readouterr().err
    key = override.partition("=")[0]
    assert f"config.{key} is" in message and f"had {before}" in message and "--init-from" in message


@pytest.mark.parametrize("override", ["model.freeze_at=2", "model.backbone_norm=frozen_bn"])
def test_random_weights_that_would_never_learn_are_refused(override, tmp_path, capsys):
    assert _run("train", *RUN, f"--config.{override}", "--workdir", str(tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert "config.train.init_from is empty" in message and "--init-from" in message and "freeze_at=0" in message


def test_a_finished_run_only_evaluates_again(workdir, capsys):
    before = (workdir / "metrics.jsonl").read_text()
    assert _run("train", *RUN, "--workdir", str(workdir)) == 0
    assert (workdir / "metrics.jsonl").read_text() == before


def test_evaluate_a_checkpoint(workdir, tmp_path):
    output = tmp_path / "result.json"
    flags = ["--output", str(output), "--report", str(tmp_path / "report")]
    assert _run("evaluate", "--checkpoint", str(workdir), *flags) == 0
    ours, trained = json.loads(output.read_text()), json.loads((workdir / "evaluation.json").read_text())
    for name in ("All", "Things", "Stuff", "per_class", "AP", "mIoU"):
        assert ours[name] == trained[name]
    reported = json.loads((tmp_path / "report" / "report.json").read_text())
    assert reported["All"] == ours["All"] and reported["AP"] == ours["AP"]["AP"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert len(page) > 10_000
    assert str(workdir.parent) not in page and f"{workdir.name}/checkpoints/" in page  # it may be mailed


def test_predict_writes_png_json_and_overlay_at_the_original_size(workdir, tmp_path):
    images = tmp_path / "pictures"
    images.mkdir()
    scenes = Scenes("val", size=(96, 80))
    for index in range(2):
        Image.fromarray(scenes[index].image).save(images / f"scene {index}.png")
    output = tmp_path / "out"
    assert _run("predict", "--checkpoint", str(workdir), "--output", str(output), str(images)) == 0
    entries = json.loads((output / "panoptic.json").read_text())["annotations"]
    assert [entry["image_id"] for entry in entries] == ["scene 0.png", "scene 1.png"]
    for entry in entries:
        ids = np.array(Image.open(output / "panoptic" / entry["file_name"])).astype(int)
        assert ids.shape == (96, 80, 3)
        present = set(np.unique(ids @ [1, 256, 65536]).tolist()) - {0}
        assert present == {segment["id"] for segment in entry["segments_info"]}
        assert Image.open(output / "overlay" / entry["file_name"]).mode == "RGB"


def test_predict_goes_on_over_a_broken_image_and_says_so(workdir, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    Image.fromarray(Scenes("val", size=(64, 64))[0].image).save(tmp_path / "good.png")
    output = tmp_path / "out"
    assert _run("predict", "--checkpoint", str(workdir), "--output", str(output), str(tmp_path)) == 1
    assert "bad.jpg" in capsys.readouterr().err
    assert len(json.loads((output / "panoptic.json").read_text())["annotations"]) == 1


def test_inspect_shows_config_parameters_and_a_batch(workdir, capsys):
    assert _run("inspect", "--checkpoint", str(workdir)) == 0
    shown = capsys.readouterr().out
    loaded = load_checkpoint(workdir)
    total = sum(leaf.size for leaf in jax.tree.leaves(loaded.variables["params"]))
    assert f"{total:,d}" in shown and "backbone/res2_0" in shown and '"optim"' in shown and "64 x 64" in shown


def test_inspect_refuses_a_network_that_is_not_the_checkpoints(workdir, capsys):
    assert _run("inspect", "--checkpoint", str(workdir), "--config.model.fpn_channels=32") == 2
    assert "config.model.fpn_channels" in capsys.readouterr().err


def test_config_and_checkpoint_that_do_not_fit(workdir, tmp_path, capsys):
    argv = [*RUN, "--config.model.encoder_channels=16", "--workdir", str(workdir)]
    assert _run("train", *argv) == 2
    message = capsys.readouterr().err
    assert "do not fit" in message and "feature_encoder" in message


def test_a_position_of_other_data_is_refused(workdir):
    config = from_command_line([*RUN, "--config.seed=5"])
    with pytest.raises(CheckpointError, match="another plan"):
        Trainer(config, workdir)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "no config"),
        (["train", "--config", "missing.py"], "missing.py: no such config file"),
        (["evaluate"], "nothing to evaluate"),
        (["evaluate", "--gt-json", "a.json"], "--pred-dir"),
        (["evaluate", "--checkpoint", "nowhere"], "no checkpoint here"),
        (["predict", "--checkpoint", "nowhere", "--output", "x", "nothing.jpg"], "nothing.jpg: no such file"),
        (["train", TINY[0], "--config.data.source=coco", "--config.data.root=nowhere"], "nowhere"),
        (["train", TINY[0], "--config.modle.remat=True"], "modle"),
        (["train", TINY[0], "--config.train.eval_every=-1"], "config.train.eval_every: must be at least 0, got -1"),
        (["train", TINY[0], "--config.data.flip=1.5"], "config.data.flip: must be from 0 to 1, got 1.5"),
        (["curves", "runs/a", "--output", "a.png", "--config.seed=1"], "curves takes no config"),
        (["parity", "--reference", "d", "--output", "r.json", "--config.seed=1"], "parity takes no config"),
        (
            ["evaluate", "--gt-json=a", "--gt-dir=b", "--pred-json=c", "--pred-dir=d", "--split=x"],
            "--split: scoring of files reads no model",
        ),
        (["train", *TINY, "--config.train.batch_size=3"], "do not divide over 2 devices"),
        (["train", *TINY, "--config.train.accumulate=2"], "2 devices in 2 parts each (config.train.accumulate)"),
    ],
)
def test_bad_input_is_one_clear_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run(*argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and "Traceback" not in err


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as stop:
        _run("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for verb in front_door.VERBS:
        assert verb in shown
        with pytest.raises(SystemExit) as stop:
            _run(verb, "--help")
        assert stop.value.code == 0
    with pytest.raises(SystemExit) as stop:
        _run("trian")
    assert stop.value.code == 2
