"""inference/listed_ids.py: an image gets the id of the longest listed name that its path ends with, or an error."""

from __future__ import annotations

import json
import pathlib
import unicodedata

import pytest
from PIL import Image

from pfcn_jax.errors import UserError
from pfcn_jax.inference.input_files import find_inputs
from pfcn_jax.inference.listed_ids import listed_ids


@pytest.fixture
def labels(tmp_path):
    def write(*names: str) -> str:
        images = [{"id": i, "file_name": name, "height": 4, "width": 4} for i, name in enumerate(names, start=1)]
        annotations = [{"image_id": i["id"], "file_name": f"{i['id']}.png", "segments_info": []} for i in images]
        categories = [{"id": 1, "name": "thing", "isthing": 1}]
        path = tmp_path / "panoptic.json"
        path.write_text(json.dumps({"categories": categories, "images": images, "annotations": annotations}))
        return str(path)

    return write


def make(root: pathlib.Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return [str(root / name) for name in names]


def test_the_longest_end_decides(labels, tmp_path):
    inputs = find_inputs(make(tmp_path, "val/a/x.png", "val/b/x.png", "val/y.png"))
    path = labels("a/x.png", "b\\x.png", "y.png")
    assert list(listed_ids(path, inputs).values()) == [1, 2, 3]


def test_accents_may_be_composed_or_decomposed(labels, tmp_path):
    inputs = find_inputs(make(tmp_path, unicodedata.normalize("NFD", "kühe/ä.png")))
    assert list(listed_ids(labels(unicodedata.normalize("NFC", "kühe/ä.png")), inputs).values()) == [1]


def test_the_image_of_another_folder_is_no_listed_one(labels, tmp_path):
    inputs = find_inputs(make(tmp_path, "train/c/x.png"))
    with pytest.raises(UserError, match=r"c/x\.png: not in"):
        listed_ids(labels("a/x.png"), inputs)


def test_what_is_ambiguous_is_refused(labels, tmp_path):
    inputs = find_inputs(make(tmp_path, "train/x.png", "val/x.png"))
    with pytest.raises(UserError, match=r"val/x\.png and .*train/x\.png: by name both are image 1"):
        listed_ids(labels("x.png"), inputs)
    with pytest.raises(UserError, match="under 2 ids"):
        listed_ids(labels_twice(labels, tmp_path), inputs[:1])


def labels_twice(labels, tmp_path) -> str:
    path = labels("x.png", "x.png")
    content = json.loads(pathlib.Path(path).read_text())
    for annotation in content["annotations"]:
        annotation["file_name"] = "same.png"  # one label map: no contradiction
    pathlib.Path(path).write_text(json.dumps(content))
    return path


def test_a_folder_search_names_what_it_leaves_out(tmp_path, capsys):
    make(tmp_path, "in/x.png", "in/._y.png", "in/.cache/z.png")
    for name in ("photo.heic", "photo.HEIC", "._photo.heic"):
        (tmp_path / "in" / name).write_bytes(b"")
    Image.new("RGB", (4, 4)).save(tmp_path / "in" / "w.jfif", format="JPEG")
    assert [entry.path.name for entry in find_inputs([str(tmp_path / "in")])] == ["w.jfif", "x.png"]
    assert "2 .heic left out" in capsys.readouterr().err
