"""Scoring of COCO-panoptic files: the recorded scores of the original evaluator, and every refusal."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.codec import write_id_png
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation import panoptic_files


def score_files(*paths, **options) -> dict[str, dict]:
    """Percent by group and by category id."""
    files = panoptic_files.PanopticFiles(*paths, **options)
    classes = files.classes
    scores = files.score().to_dict(classes.category_ids)
    for category_id, name in zip(classes.category_ids, classes.names):
        scores["per_class"][category_id]["name"] = name
    return scores


def test_equals_the_original_evaluator_in_every_class(reference_dir, image_data_dir):
    labels, recorded = image_data_dir / "coco_sample/annotations", reference_dir / "pq_coco_val50"
    scores = score_files(
        labels / "panoptic_val2017.json", labels / "panoptic_val2017", recorded / "pred.json", recorded / "pred"
    )
    expected = json.loads((recorded / "expected.json").read_text())
    for group in ("All", "Things", "Stuff"):
        assert scores[group]["N"] == expected[group]["n"]
        for name in ("PQ", "SQ", "RQ"):
            assert abs(scores[group][name] / 100 - expected[group][name.lower()]) < 1e-9
    assert {str(category_id) for category_id in scores["per_class"]} == set(expected["per_class"])
    for category_id, values in expected["per_class"].items():
        for name, value in values.items():
            assert abs(scores["per_class"][int(category_id)][name.upper()] / 100 - value) < 1e-9, category_id


class Files:
    """Two labeled images with good predictions, to be spoilt."""

    def __init__(self, folder):
        self.folder = folder
        gt_map = np.zeros((6, 8), np.int32)
        gt_map[:, :3], gt_map[:, 3:6], gt_map[:2, 6:] = 70000, 5, 300
        self.maps = {"gt": [gt_map, gt_map[:, ::-1]], "pred": [gt_map.copy(), gt_map[:, ::-1].copy()]}
        segments = [{"id": 70000, "category_id": 1, "iscrowd": 0, "area": 18}, {"id": 5, "category_id": 7, "area": 18}]
        segments.append({"id": 300, "category_id": 1, "iscrowd": 1, "area": 4})
        self.json = {
            "gt": {"annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in (3, 4)]}
        }
        self.json["pred"] = copy.deepcopy(self.json["gt"])
        self.json = copy.deepcopy(self.json)
        self.json["gt"]["categories"] = [{"id": 7, "name": "sky", "isthing": 0}, {"id": 1, "name": "cat", "isthing": 1}]

    def annotation(self, side, image=0):
        return self.json[side]["annotations"][image]

    def segment(self, side, i=0):
        return self.annotation(side)["segments_info"][i]

    def write(self):
        for side, maps in self.maps.items():
            (self.folder / side).mkdir()
            for image_id, id_map in zip((3, 4), maps):
                write_id_png(self.folder / side / f"{image_id}.png", id_map)
            (self.folder / f"{side}.json").write_text(json.dumps(self.json[side]))

    def score(self, **options):
        paths = [self.folder / name for name in ("gt.json", "gt", "pred.json", "pred")]
        return score_files(*paths, **options)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_labels_scored_against_themselves_are_perfect(files):
    files.write()
    scores = files.score(workers=1)
    for group, n in (("All", 2), ("Things", 1), ("Stuff", 1)):
        assert scores[group] == {"PQ": 100.0, "SQ": 100.0, "RQ": 100.0, "N": n}
    assert scores["per_class"][1] == {"PQ": 100, "SQ": 100, "RQ": 100, "TP": 2, "FP": 0, "FN": 0, "name": "cat"}
    assert list(scores["per_class"]) == [1, 7]  # things first
    json.dumps(scores, allow_nan=False)
    assert scores == files.score(workers=3)


def test_string_image_ids_and_missing_crowd_and_area_are_fine(files):
    for side in ("gt", "pred"):
        for i in (0, 1):
            files.annotation(side, i)["image_id"] = f"city_{i}"
            files.annotation(side, i)["segments_info"] = [
                {"id": s["id"], "category_id": s["category_id"]} for s in files.annotation(side, i)["segments_info"]
            ]
    files.write()
    assert files.score()["per_class"][1]["TP"] == 4


def refused(files, *words, write=True, **options):
    """Scoring fails with one line that holds all the words."""
    if write:
        files.write()
    with pytest.raises(UserError) as caught:
        files.score(**options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("side", ["gt", "pred"])
class TestRefusesOnEitherSide:
    def test_repeated_segment_id(self, files, side):
        files.segment(side, 1)["id"] = 300
        refused(files, f"{side}.json", "image 3", "segment 300: this segment id appears twice")

    def test_id_only_in_the_png(self, files, side):
        files.annotation(side)["segments_info"].pop(1)
        refused(files, f"{side}/3.png", "segment ids 5 are painted but not in the JSON")

    def test_largest_id_only_in_the_png(self, files, side):
        files.annotation(side)["segments_info"].pop(0)
        refused(files, f"{side}/3.png", "segment ids 70000 are painted but not in the JSON")

    def test_id_only_in_the_json(self, files, side):
        files.annotation(side)["segments_info"].append({"id": 17, "category_id": 1})
        refused(files, f"{side}/3.png", "segment ids 17 are in the JSON but have no pixels")

    def test_unknown_category(self, files, side):
        files.segment(side)["category_id"] = 2
        refused(files, f"{side}.json", "image 3", "segment 70000", "unknown category 2")

    @pytest.mark.parametrize("value", [0, -4, 1 << 24])
    def test_id_out_of_range(self, files, side, value):
        files.segment(side)["id"] = value
        refused(files, f"{side}.json", f"segment {value}", "must be in 1..16777215")

    @pytest.mark.parametrize("value", ["5", 5.5, None, True])
    def test_id_of_a_wrong_type(self, files, side, value):
        files.segment(side)["id"] = value
        refused(files, f"{side}.json: image 3, segments_info[0]: id is ", "must be a whole number")

    @pytest.mark.parametrize("area", [0, 19, 19.0, 10**30])
    def test_area_that_is_not_the_pngs(self, files, side, area):
        files.segment(side)["area"] = area
        refused(files, f"{side}/3.png", "segment 70000 has 18 pixels, but the JSON says area")

    @pytest.mark.parametrize("name", ["", "3.png\0"])
    def test_bad_file_name(self, files, side, name):
        files.annotation(side)["file_name"] = name
        refused(files, f"{side}.json: annotations[0]: file_name is {name!r} (text), must be the text of a file name")

    def test_bad_crowd_flag(self, files, side):
        files.segment(side)["iscrowd"] = 2
        refused(files, f"{side}.json: image 3, segments_info[0]: iscrowd is 2 (a number), must be 0 or 1")

    def test_image_twice(self, files, side):
        files.annotation(side, 1)["image_id"] = 3
        refused(files, f"{side}.json", "image id 3 appears twice in annotations")

    @pytest.mark.parametrize("key", ["image_id", "file_name", "segments_info"])
    def test_missing_key(self, files, side, key):
        del files.annotation(side, 1)[key]
        refused(files, f"{side}.json: annotations[1] has no {key}")

    def test_missing_annotations(self, files, side):
        del files.json[side]["annotations"]
        refused(files, f"{side}.json: no annotations")

    def test_annotation_that_is_no_object(self, files, side):
        files.json[side]["annotations"][1] = 7
        refused(files, f"{side}.json: annotations[1]: must be an object, got 7 (a number)")

    @pytest.mark.parametrize("text, words", [
        (b'{"annotations": [', "not JSON"), (b"\xff\xfe\x00", "not JSON"), (b"", "not JSON"),
        (b"[]", "holds a list, but a COCO-panoptic file is an object with"), (b"[" * 100000, "not JSON"),
    ])  # fmt: skip
    def test_broken_json(self, files, side, text, words):
        files.write()
        (files.folder / f"{side}.json").write_bytes(text)
        refused(files, f"{side}.json", words, write=False)

    def test_missing_json(self, files, side):
        files.write()
        (files.folder / f"{side}.json").unlink()
        refused(files, f"{side}.json: No such file", write=False)

    def test_json_that_is_a_folder(self, files, side):
        files.write()
        (files.folder / f"{side}.json").unlink()
        (files.folder / f"{side}.json").mkdir()
        refused(files, f"{side}.json: Is a directory", write=False)

    def test_missing_folder(self, files, side):
        files.write()
        (files.folder / side).rename(files.folder / "elsewhere")
        refused(files, f"/{side}: no such folder", write=False)

    def test_missing_png(self, files, side):
        files.write()
        (files.folder / side / "4.png").unlink()
        refused(files, f"{side}/4.png (image 4): No such file", write=False)

    def test_png_cut_short(self, files, side):
        files.write()
        path = files.folder / side / "4.png"
        path.write_bytes(path.read_bytes()[:50])
        refused(files, f"{side}/4.png (image 4): broken PNG", write=False)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
    def test_png_that_is_not_rgb(self, files, side, mode):
        files.write()
        Image.new(mode, (8, 6)).save(files.folder / side / "4.png")
        refused(files, f"{side}/4.png (image 4): a panoptic PNG must be 8-bit RGB", write=False)

    def test_image_that_is_no_png(self, files, side):
        files.write()
        Image.new("RGB", (8, 6)).save(files.folder / side / "4.png", format="JPEG")
        refused(files, f"{side}/4.png (image 4): not a PNG", write=False)

    def test_size_that_differs(self, files, side):
        files.maps[side][0] = np.repeat(files.maps[side][0], 2, axis=1)
        for segment in files.annotation(side)["segments_info"]:
            del segment["area"]
        wide = {"gt": "is 6 x 8 (height x width), but", "pred": "is 6 x 16 (height x width), but"}[side]
        refused(files, "pred/3.png", wide, "gt/3.png")


def test_red_and_blue_exchanged_is_named_only_if_it_explains_every_id(files):
    def as_bgr(id_map):
        return ((id_map & 255) << 16 | id_map & 0xFF00 | id_map >> 16).astype(np.int32)

    right = files.maps["pred"][0]
    files.maps["pred"][0] = as_bgr(right)
    refused(files, "pred/3.png", "painted but not in the JSON", "with R and B exchanged all are")
    one_more = as_bgr(right)
    one_more[0, 0] = 9
    write_id_png(files.folder / "pred" / "3.png", one_more)
    with pytest.raises(UserError) as caught:
        files.score()
    assert "BGR" not in str(caught.value)


def open_files(files):
    files.write()
    return panoptic_files.PanopticFiles(*(files.folder / name for name in ("gt.json", "gt", "pred.json", "pred")))


def test_pq_0_with_matching_masks_prints_the_confusion_of_categories(files):
    for segment in files.annotation("pred")["segments_info"]:  # both images have these segments
        segment["category_id"] = {1: 7, 7: 1}[segment["category_id"]]
    opened = open_files(files)
    result = opened.score()
    assert result.all.PQ == 0.0
    assert sorted(opened.confused_categories()) == [(0, 1, 2), (1, 0, 2)]
    hint = panoptic_files.confusion_hint(opened, result)
    for pair in ("2 of 'sky' (id 7) predicted as 'cat' (id 1)", "2 of 'cat' (id 1) predicted as 'sky' (id 7)"):
        assert pair in hint


def test_no_confusion_is_printed_where_a_category_is_found(files):
    files.segment("pred")["category_id"] = 7
    opened = open_files(files)
    assert panoptic_files.confusion_hint(opened, opened.score()) == ""


def test_missing_and_extra_predictions(files):
    dropped = files.json["pred"]["annotations"].pop(0)
    refused(files, "gt.json: image 3 without a prediction in", "pred.json")
    files.json["pred"]["annotations"] += [dropped, {**dropped, "image_id": 99}]
    (files.folder / "pred.json").write_text(json.dumps(files.json["pred"]))
    refused(files, "pred.json: predicts image 99, unknown to", "gt.json", write=False)
    files.json["pred"]["annotations"] = []
    (files.folder / "pred.json").write_text(json.dumps(files.json["pred"]))
    refused(files, "gt.json: images 3, 4 without a prediction", write=False)


def test_labels_without_a_image(files):
    files.json["gt"]["annotations"] = []
    refused(files, "gt.json: no annotated image")


@pytest.mark.parametrize("categories, words", [
    (None, "no categories"),
    ([], "at least one class"),
    ([{"id": 1, "name": "a", "isthing": 1}, {"id": 1, "name": "b", "isthing": 0}], "repeated category id: 1"),
    ([{"id": 1}], "isthing"),
    ([{"name": "cat", "isthing": 1}], "id"),
    (["cat"], "cat"),
])  # fmt: skip
def test_bad_categories(files, categories, words):
    del files.json["gt"]["categories"]
    if categories is not None:
        files.json["gt"]["categories"] = categories
    refused(files, "gt.json", words)


def test_first_error_in_the_order_of_the_labels_is_reported(files):
    files.write()
    for image_id in (3, 4):
        (files.folder / "pred" / f"{image_id}.png").write_bytes(b"no png")
    for workers in (1, 4):
        refused(files, "pred/3.png", write=False, workers=workers)
    refused(files, "workers must be at least 1", write=False, workers=0)


def test_the_last_crowd_in_the_file_counts_whatever_its_id(files):
    gt_map = np.repeat(np.array([[9, 9, 9, 2, 2, 2]], np.int32), 2, axis=0)
    for side in ("gt", "pred"):
        files.maps[side][0] = gt_map
    crowds = [{"id": i, "category_id": 1, "iscrowd": 1} for i in (9, 2)]
    files.annotation("gt")["segments_info"] = crowds
    files.annotation("pred")["segments_info"] = [{"id": 9, "category_id": 1}, {"id": 2, "category_id": 7}]
    files.write()
    assert files.score()["per_class"][1]["FP"] == 1
    files.annotation("gt")["segments_info"] = crowds[::-1]
    (files.folder / "gt.json").write_text(json.dumps(files.json["gt"]))
    assert files.score()["per_class"][1]["FP"] == 0
