"""Model cards: made from the checkpoint alone, the same every time, and never with scores of another step."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import pytest

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.format import BACKBONE, save_model
from pfcn_jax.config.schema import config_hash, from_command_line, to_json
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.evaluation.card import find_scores, make_card
from pfcn_jax.metrics.pq import PQCounts, pq_counts, pq_result
from pfcn_jax.models.build import build_model
from pfcn_jax.utils.atomic import write_json
from tests.support.tiny import TINY, tiny_variables

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
FILE = "evaluation.json"
CONFIG = from_command_line([*TINY, "--config.train.steps=5", "--config.train.ema_decay=0.9"])


def meta_of(step: int, **more) -> dict:
    meta = {"config": json.loads(to_json(CONFIG)), "classes": class_table().to_json(), "position": {"batch": step}}
    return {**meta, **more}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    """What a run of five steps leaves: a checkpoint, and the scores of a prediction that finds all but the things."""
    workdir = tmp_path_factory.mktemp("run")
    save_model(
        workdir,
        model=tiny_variables(build_model(CONFIG.model, *class_table().counts)),
        meta=meta_of(5),
    )
    classes, counts = class_table(), PQCounts.zeros(len(class_table()))
    for index in range(3):
        example = Scenes("val", size=(64, 64))[index]
        stuff = example.class_id >= classes.num_things
        kept = example.segment_map * stuff[example.segment_map - 1]
        truth = (example.segment_map, example.class_id, example.is_crowd)
        counts += pq_counts(*truth, kept, example.class_id, len(classes))
    scores = pq_result(counts, classes.is_thing).to_dict(classes.category_ids)
    write_json(workdir / "evaluation.json", {"step": 5, **scores, "AP": {"AP": 0.0}, "mIoU": 83.25, "pictures": 3})
    return workdir


def card(path: pathlib.Path, output: pathlib.Path, *more: str) -> str:
    assert front_door.main(["card", "--checkpoint", str(path), "--output", str(output), *more]) == 0
    return output.read_text()


@pytest.fixture(scope="module")
def text(run, tmp_path_factory) -> str:
    return card(run, tmp_path_factory.mktemp("card") / "card.md")


def test_what_a_card_says(text):
    assert f"| config hash | `{config_hash(CONFIG)}` |" in text
    assert "trained by this code, 5 steps" in text and "| 5 of 5, 2 images each: 10 seen |" in text
    assert "short side 64, long side at most 64 pixels" in text and "| `fusion_threshold` | 0.9 |" in text
    assert "| all | 223,334 (0.9 MB in float32) |" in text
    assert "Things: ball, crate, tent, star, ring." in text and "drawn scenes" in text
    assert "| Things | 0.0 | 0.0 | 0.0 |" in text and "| Stuff | 100.0 | 100.0 | 100.0 |" in text
    assert "AP 0.0, mIoU 83.2, 3 images." in text
    assert "| sky | 100.0 |" in text and "| ring | 0.0 |" in text


def test_the_same_every_time_and_everywhere(run, text, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    assert card(tmp_path / "moved", tmp_path / "again.md", "--scores", str(run / "evaluation.json")) == text
    assert str(tmp_path) not in text and str(run) not in text


def test_scores_belong_to_their_step(run, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoints" / "3"
    assert find_scores(checkpoint, meta_of(3), None) == (None, "Not evaluated yet.")
    shutil.copy(run / "evaluation.json", tmp_path)
    scores, note = find_scores(checkpoint, meta_of(3), None)
    assert scores is None and "belongs to step 5, this checkpoint to step 3" in note
    assert find_scores(checkpoint, meta_of(5), None)[0] == find_scores(checkpoint, meta_of(3), str(run / FILE))[0]

    argv = ["card", "--checkpoint", str(run), "--output", str(tmp_path / "x.md")]
    (tmp_path / "wrong.json").write_text('{"PQ": 3}')
    assert front_door.main([*argv, "--scores", str(tmp_path / "wrong.json")]) == 2
    assert "no result of `evaluate --output`" in capsys.readouterr().err
    assert front_door.main([*argv, "--config.data.root=x"]) == 2
    assert "takes no config" in capsys.readouterr().err and not (tmp_path / "x.md").exists()


def test_names_of_classes_cannot_break_the_card():
    table = class_table()
    names = ("a|b", "<script>", *table.names[2:])
    odd = ClassTable(names, table.category_ids, table.is_thing)
    text = make_card({**meta_of(0), "classes": odd.to_json()})
    assert "a\\|b" in text and "<script>" not in text and "| weights | not trained |" in text


def test_converted_weights_and_a_backbone():
    assert "converted (panoptic_fcn)" in make_card({**meta_of(0), "converted_from": "panoptic_fcn"})
    with pytest.raises(ValueError, match="a backbone alone"):
        make_card(meta_of(0, kind=BACKBONE))


def test_scored_on_its_own_training_data_is_said():
    data = dataclasses.replace(
        CONFIG.data, source="coco", root="/home/somebody/nuclei", train_split="a", eval_split="a", train_examples=8
    )
    config = json.loads(to_json(dataclasses.replace(CONFIG, data=data)))
    text = make_card({**meta_of(5), "config": config})
    assert "scored on images of the split that it was trained on" in text
    assert "`coco`, folder `nuclei`, split `a`, its first 8 images" in text and "somebody" not in text
