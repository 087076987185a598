"""Model cards: made from the checkpoint alone, the same every time, and never with scores of another step."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import pytest
import yaml

from pfcn_jax import main as front_door
from pfcn_jax.checkpoints.format import BACKBONE, save_model
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import config_hash, to_json
from pfcn_jax.data.classes import ClassTable, coco_classes
from pfcn_jax.data.datasets.scenes import Scenes, class_table
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.card import find_scores, make_card
from pfcn_jax.evaluation.hub import HubFields, front_matter
from pfcn_jax.evaluation.provenance import provenance
from pfcn_jax.interop.zoo import TABLE
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
    facts = {"step": 5, "evaluated": provenance(CONFIG, "val"), "pictures": 3}
    write_json(workdir / FILE, {**facts, **scores, "AP": {"AP": 0.0}, "mIoU": 83.256})
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
    assert "AP 0.0, mIoU 83.3, 3 images." in text
    assert "| sky | 100.0 |" in text and "| ring | 0.0 |" in text
    assert "Measured on `scenes`, split `val`.\n" in text


def front_of(text: str) -> dict:
    opening, front, body = text.split("---\n", 2)
    assert opening == "" and body.startswith("\n# Panoptic FCN: ")
    return yaml.safe_load(front)


def front_alone(scores, config=CONFIG, classes=None, *, trained=True) -> dict:
    text = front_matter(config, classes or class_table(), scores, HubFields(), trained=trained)
    return yaml.safe_load(text.strip("-\n"))


def test_the_front_matter_is_what_the_hub_reads(text):
    """The names of the keys are those of `huggingface_hub.ModelCardData` and `EvalResult`."""
    front = front_of(text)
    assert list(front) == ["library_name", "pipeline_tag", "tags", "model-index"]  # no license is known, no data set
    assert front["library_name"] == "pfcn_jax" and front["pipeline_tag"] == "image-segmentation"
    assert {"panoptic-segmentation", "jax", CONFIG.model.backbone} <= set(front["tags"])
    (model,) = front["model-index"]
    (result,) = model["results"]
    assert model["name"] == CONFIG.name and result["task"]["type"] == "image-segmentation"
    assert result["dataset"] == {
        "type": "scenes",
        "name": "scenes drawn by pfcn_jax",
        "split": "val",
        "args": {"images": 3},
    }
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found.pop("pq") == found.pop("sq") == found.pop("rq")  # a class is found whole, or not at all
    assert found == {"pq_things": 0.0, "pq_stuff": 100.0, "ap": 0.0, "mean_iou": 83.26}
    assert all(set(metric) == {"type", "name", "value"} for metric in result["metrics"])


def test_a_figure_that_was_not_measured_is_not_there(run):
    scores = json.loads((run / FILE).read_text())
    assert "model-index" not in front_alone(None)
    without_data = {key: value for key, value in scores.items() if key != "evaluated"}
    text = make_card(meta_of(5), without_data)
    assert "model-index" not in front_of(text) and "does not say which data" in text
    no_things = scores | {"Things": {"PQ": 0.0, "N": 0}, "AP": {"AP": float("nan")}, "mIoU": None}
    (result,) = front_alone(no_things)["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["pq", "sq", "rq", "pq_stuff"]


def test_other_settings_of_the_evaluation_are_said(run):
    changed = dataclasses.replace(CONFIG, tta=dataclasses.replace(CONFIG.tta, flip=True))
    scores = json.loads((run / FILE).read_text()) | {"evaluated": provenance(changed, "val")}
    text = make_card(meta_of(5), scores)
    assert "split `val` with `tta.flip=true`." in text
    (result,) = front_of(text)["model-index"][0]["results"]
    assert {metric["config"] for metric in result["metrics"]} == {"tta.flip=true"}


def test_license_and_data_set_are_named_by_flags_or_known(run, tmp_path, capsys):
    front = front_of(card(run, tmp_path / "card.md", "--license", "cc-by-nc-4.0", "--dataset", "me/scenes"))
    assert front["license"] == "cc-by-nc-4.0" and front["datasets"] == ["me/scenes"]
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == "me/scenes"
    argv = ["card", "--checkpoint", str(run), "--output", str(tmp_path / "x.md")]
    assert front_door.main([*argv, "--license", "Apache 2"]) == 2 and "apache-2.0" in capsys.readouterr().err
    assert front_door.main([*argv, "--dataset", "a/b/c"]) == 2 and "OWNER/NAME" in capsys.readouterr().err

    coco = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, source="coco"))
    assert "datasets" not in front_alone(None, coco)  # somebody's own classes in COCO's layout
    assert front_alone(None, coco, coco_classes())["datasets"] == ["coco"]
    assert "datasets" not in front_alone(None, coco, coco_classes(), trained=False)  # weights of others
    assert {entry.license_id for entry in TABLE.values() if entry.is_model} == {"Apache-2.0"}
    assert {entry.license_id for entry in TABLE.values() if entry.name.startswith("timm-")} == {""}


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
    assert find_scores(checkpoint, meta_of(5), None)[0] == find_scores(checkpoint, meta_of(5), str(run / FILE))[0]
    with pytest.raises(UserError, match="scores step 5, this checkpoint is of step 3"):
        find_scores(checkpoint, meta_of(3), str(run / FILE))

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
