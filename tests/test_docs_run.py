"""Every command of the documents runs: in their order, with a tiny network on a few small images.

What a command leaves (`runs/r50`) is what later commands find. Commands that cannot run here are listed with the test
that runs the same thing elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config
from pfcn_jax.data.classes import coco_classes
from pfcn_jax.data.datasets.scenes import Scenes
from pfcn_jax.interop.convert import from_params
from pfcn_jax.interop.names import ModelFacts
from pfcn_jax.interop.writer import write_state_dict
from pfcn_jax.models.build import abstract_variables, build_model
from tests.data.fixtures import write_tiny_coco
from tests.documents import PAGES, ROOT, Command, commands
from tests.support.tiny import QUICK_COMPILER, TINY

# Part of a command -> the test that runs it, or what is like it.
ELSEWHERE = {
    "demo --checkpoint": "tests/apps/test_demo.py",
    "parity --reference": "tests/studies/parity/test_command.py",
    "benchmark ": "tests/studies/test_benchmark.py",
    "compile ": "tests/studies/compile/test_command.py",
    "bulk ": "tests/apps/test_bulk.py",
    "export --checkpoint": "tests/export/test_export.py",
    "configs/ablations.py": "tests/studies/test_ablation.py",
    "--config.tta.flip": "tests/test_tta.py",
    "--coordinator": "tests/training/test_distributed.py",
    "configs/cityscapes_r50.py": "tests/training/test_one_step.py",
    "--init-from runs/r50_imagenet --workdir runs/r50_1x": "tests/commands/test_convert.py",
    "--checkpoint panoptic-fcn-": "tests/checkpoints/test_named.py",  # needs a network
    "--init-from msra-r50": "tests/checkpoints/test_named.py",
    "weights ": "tests/checkpoints/test_named.py",
    "prepare instances --json out/": "tests/inference/test_round_trips.py",  # a tiny network may find nothing
    "prepare yolo --data out": "tests/inference/test_round_trips.py",
    "prepare labelme --labels out": "tests/inference/test_round_trips.py",
    "prepare label-studio --input out": "tests/inference/test_round_trips.py",
    "convert --input swin_t.pth": "tests/checkpoints/test_conversion.py",
    "evaluate --video": "tests/evaluation/test_video_scores.py",
    "damaged": "tests/test_faults_page.py",
    "data/own": "tests/test_walkthrough.py",  # the walk-through of docs/datasets.md, run as it stands there
    "runs/own": "tests/test_walkthrough.py",
}
FOUND = ("data.source", "data.root", "data.train_split", "data.eval_split")  # what a config says stays
WORDS = {"G": "DIR/annotations/panoptic_val2017.json", "P": "DIR/annotations/panoptic_val2017.json",
         "D": "DIR/annotations/panoptic_val2017", "Q": "DIR/annotations/panoptic_val2017"}  # fmt: skip

# All in one process, so that JAX is loaded once.
DRIVER = """
import json, sys
from pfcn_jax import main as front_door
for argv in json.load(sys.stdin):
    try:
        status = front_door.main(argv)
    except SystemExit as stop:  # --help
        status = stop.code
    if status != 0:
        sys.exit(f"exit status {status}: {argv[:8]}")
"""

pytestmark = pytest.mark.slow


def tiny_run() -> list[str]:
    """Every value of a tiny run but where its data are: all trainings below are then one and the same program."""
    config = from_command_line([*TINY, "--config.train.steps=4", "--config.train.checkpoint_every=2",
                                "--config.train.ema_decay=0.5", "--config.data.train_examples=2"])  # fmt: skip
    sections = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {
        f"{section}.{key}": value
        for section, keys in sections.items()
        if dataclasses.is_dataclass(keys)
        for key, value in dataclasses.asdict(keys).items()
    }
    return [f"--config.{key}={value}" for key, value in values.items() if key not in FOUND]


def in_order() -> list[Command]:
    """The commands of all pages, README first, without those that run elsewhere; of each config one training."""
    found: dict[tuple[str, ...], Command] = {}
    for path in sorted(PAGES, key=lambda path: path.name != "README.md"):
        for command in commands(path):
            argv = command.argv
            training = argv[: argv.index("--config") + 2] if argv[0] == "--config" else argv
            if not elsewhere(command):  # the same of two runs is the same
                found.setdefault(tuple(word.replace("runs/quickstart", "runs/r50") for word in training), command)
    return list(found.values())


def elsewhere(command: Command) -> str | None:
    return next((test for part, test in ELSEWHERE.items() if part in command.text), None)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """What the commands of the documents find: data, images, a film, and weights of others."""
    root = tmp_path_factory.mktemp("world")
    (root / "configs").symlink_to(ROOT / "configs")
    write_tiny_coco(root / "DIR", splits={"train2017": 3, "val2017": 2})
    for name in ("CAMVID", "CATS", "NUCLEI"):
        write_tiny_coco(root / name, splits={"train": 3, "val": 2})
    scenes = Scenes("val", size=(64, 64))
    for name in ("photos/a.png", "more/deep/b.png", "IMAGES.../c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[0].image).save(root / name)
    film = cv2.VideoWriter(str(root / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (64, 64))
    for index in range(2):
        film.write(scenes[index].image[:, :, ::-1])
    film.release()
    narrow = {
        "backbone_width": 8,
        "fpn_channels": 32,
        "head_channels": 32,
        "kernel_channels": 32,
        "encoder_channels": 8,
    }
    section = Config().model.__class__(backbone="resnet18", **narrow)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        abstract_variables(build_model(section, *coco_classes().counts)),
    )
    state_dict = from_params(weights, ModelFacts(section))
    write_state_dict(root / "model.pth", state_dict)
    prefix = "backbone.bottom_up."
    backbone = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    write_state_dict(root / "R-50.pkl", backbone)
    return root


def test_every_command_runs(world):
    lines = []
    for command in in_order():
        argv = [WORDS.get(word, word) for word in command.argv]
        if "--init-from" in argv:  # the tiny network starts from nothing
            at = argv.index("--init-from")
            del argv[at : at + 2]
        lines.append(argv + tiny_run() if "--config" in argv else argv)
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(lines), cwd=world,
        env={**os.environ, "PYTHONPATH": str(ROOT), **QUICK_COMPILER}, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr[-3000:]
    for left in ("runs/r50/evaluation.json", "card.md", "curves.png", "report/report.html", "out/panoptic.json",
                 "insides/c.html", "runs/converted/checkpoints", "result.json", "R.json"):  # fmt: skip
        assert (world / left).exists(), left


def test_what_runs_elsewhere_is_there():
    for command in (command for path in PAGES for command in commands(path)):
        test = elsewhere(command)
        assert test is None or (ROOT / test).is_file(), f"{command.page}: {command.text}"
