"""A class of the labels with the name of the background: stuff in every format, an error if marked as a thing."""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex

import pytest

from pfcn_jax import main as front_door
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.common import choose_kinds, things_and_background
from tests.support.fault_inputs import Change, edit
from tests.support.tool_faults import TOOL_SECTIONS, replace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools and NumPy 2

SECTIONS = {section.title: section for section in TOOL_SECTIONS}
# Title of a section -> a change that adds a class "ball" to its labels, and the class that their objects have.
TOOLS: dict[str, tuple[Change, str]] = {
    "YOLO": (replace("data.yaml", "[disk]", "[disk, ball]"), "disk"),
    "LabelMe": (lambda root: None, "disk"),
    "Pascal VOC": (lambda root: None, "cat"),
    "CVAT": (replace("annotations.xml", "</label>", "</label><label><name>ball</name></label>"), "disk"),
    "Label Studio": (lambda root: None, "disk"),
    "Roboflow": (
        edit("train/_annotations.coco.json", lambda c: c["categories"].append({"id": 9, "name": "ball"})),
        "disk",
    ),
    "Supervisely": (edit("meta.json", lambda content: content["classes"].append({"title": "ball"})), "disk"),
}
FROM_FLAGS = ("LabelMe", "Label Studio")  # the labels do not list their classes: the flags name "ball"


def prepare(tool: str, folder: pathlib.Path, flags: str) -> int:
    words = re.sub(r"\bdamaged\b", str(folder / "in"), f"{SECTIONS[tool].command} {flags}")
    return front_door.main(shlex.split(words.replace("--output out", f"--output {folder / 'out'}")))


@pytest.fixture(params=TOOLS)
def export(request, tmp_path) -> tuple[str, pathlib.Path, str]:
    """The tool, the folder of its export `in`, and the class of the objects."""
    change, name = TOOLS[request.param]
    SECTIONS[request.param].make(tmp_path / "in")
    change(tmp_path / "in")
    return request.param, tmp_path, name


def test_it_is_stuff_and_takes_the_free_pixels(export):
    tool, folder, name = export
    flags = "--things ball" if tool in FROM_FLAGS else ""
    assert prepare(tool, folder, f"--background {name} {flags}") == 0
    source = CocoFolder(folder / "out", "train")
    assert source.classes.names.count(name) == 1 and source.classes.num_stuff == 1
    for index in range(len(source)):
        example = source[index]
        assert [source.classes.names[c] for c in example.class_id] == [name] and (example.segment_map == 1).all()


def test_marked_as_a_thing_it_is_an_error(export, capsys):
    tool, folder, name = export
    assert prepare(tool, folder, f"--background {name} --things {name}") == 2
    said = capsys.readouterr().err
    assert f"class {name!r} is a thing and the background" in said and "[category-invalid" in said
    assert not (folder / "out").exists()


def test_kinds_of_other_classes_need_not_name_the_background():
    flags = argparse.Namespace(things=["ball"], stuff=["sky"])
    names = ["disk", "ball", "sky"]
    assert choose_kinds(flags, names, background="disk") == (["ball"], ["sky", "disk"])
    with pytest.raises(DataError, match="neither"):
        choose_kinds(flags, names)


def test_a_folder_of_instance_masks_is_a_thing():
    with pytest.raises(DataError, match="is a thing and the background"):
        things_and_background(["background"], "background")


def test_a_detection_json_may_say_it(tmp_path, capsys):
    SECTIONS["Roboflow"].make(tmp_path / "in")
    path = "train/_annotations.coco.json"
    edit(path, lambda c: c["categories"].append({"id": 9, "name": "background", "isthing": 0}))(tmp_path / "in")
    assert prepare("Roboflow", tmp_path, "") == 0
    classes = CocoFolder(tmp_path / "out", "train").classes
    assert classes.names == ("disk", "background") and classes.category_ids[1] == 9
    edit(path, lambda c: c["categories"][1].update(isthing=1))(tmp_path / "in")
    capsys.readouterr()
    assert prepare("Roboflow", tmp_path, "--output out2") == 2
    assert "class 'background' is a thing and the background" in capsys.readouterr().err
    assert prepare("Roboflow", tmp_path, "--stuff background") == 0  # the flag wins
