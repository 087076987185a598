"""CVAT's three exports give the segments that were drawn; what has no pixels is refused with its number."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.xml_files import read_xml
from tests.data.importers.drawn import (
    SIZE,
    box,
    corners,
    disk,
    masks_of,
    prepare,
    runs_of,
    visible,
    write_image,
)
from tests.data.importers.support import imported

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder


def write_xml(folder: pathlib.Path, images: str, labels: tuple[str, ...] = ("cat", "dog", "sky")) -> pathlib.Path:
    listed = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in labels)
    folder.mkdir(parents=True, exist_ok=True)
    text = (
        f"<annotations><version>1.1</version><meta><task><labels>{listed}</labels></task></meta>{images}</annotations>"
    )
    (folder / "annotations.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}')
    return folder


def image(name: str, shapes: str, more: str = "") -> str:
    return f'<image id="0" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}" {more}>{shapes}</image>'


def polygon(label: str, flat: list[float], more: str = "") -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(flat[::2], flat[1::2]))
    return f'<polygon label="{label}" points="{points}" occluded="0" {more}></polygon>'


def mask(label: str, whole: np.ndarray, more: str = "") -> str:
    rows, columns = np.flatnonzero(whole.any(1)), np.flatnonzero(whole.any(0))
    top, left, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    own = whole[top : top + height, left : left + width]
    counts = ", ".join(map(str, runs_of(own)))
    where = f'left="{left}" top="{top}" width="{width}" height="{height}"'
    return f'<mask label="{label}" rle="{counts}" {where} {more}></mask>'


def test_xml_with_layers_groups_and_masks(tmp_path, capsys):
    write_image(tmp_path / "in/images/a b.png")
    ring = disk(30, 40, 12) & ~disk(30, 40, 6)
    shapes = (
        polygon("cat", corners(2, 2, 20, 20), 'z_order="1"')
        + polygon("dog", corners(5, 5, 10, 10), 'z_order="0"')  # below the cat, though it is smaller
        + polygon("dog", corners(15, 15, 25, 25), 'z_order="2"')
        + mask("cat", ring)
        + mask("dog", box(40, 2, 44, 6), 'group_id="3"')
        + polygon("dog", corners(40, 10, 44, 14), 'group_id="3"')
        + polygon("cat", corners(44, 20, 46, 22), 'group_id="3"')  # grouped, but of another label
        + '<tag label="cat"></tag>'
    )
    write_xml(tmp_path / "in", image("a b.png", shapes))
    assert prepare("cvat", tmp_path / "in", tmp_path / "out", "--skip-bad") == 0
    text = capsys.readouterr().out
    assert "CVAT for images 1.1" in text and "objects: 7 found = 5 written + 1 left out + 1 joined" in text
    assert "1 objects lie completely below others" in text
    pair = box(40, 2, 44, 6) | box(40, 10, 44, 14)
    drawn = [("cat", ring), ("dog", pair), ("cat", box(44, 20, 46, 22)), ("dog", box(5, 5, 10, 10))]
    drawn += [("cat", box(2, 2, 20, 20)), ("dog", box(15, 15, 25, 25))]
    assert imported(tmp_path / "out", "train")["a b.png"] == visible(drawn)


def test_xml_stuff_ellipses_and_subsets(tmp_path):
    for subset in ("Train", "Validation"):
        write_image(tmp_path / f"in/images/{subset}/x.png")
    ellipse = '<ellipse label="cat" cx="30" cy="24" rx="10" ry="5" rotation="90"></ellipse>'
    shapes = polygon("sky", corners(0, 0, 10, 64)) + polygon("sky", corners(40, 0, 48, 64)) + ellipse
    images = image("x.png", shapes, 'subset="Train"') + image("x.png", ellipse, 'subset="Validation"')
    write_xml(tmp_path / "in", images)
    assert prepare("cvat", tmp_path / "in", tmp_path / "out", "--stuff", "sky", "--background", "") == 0
    found = imported(tmp_path / "out")["x.png"]
    (sky,), (cat,) = masks_of(found, "sky"), masks_of(found, "cat")
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    upright = ((rows - 24) / 10) ** 2 + ((columns - 30) / 5) ** 2
    np.testing.assert_array_equal(sky, (box(0, 0, 10, 64) | box(40, 0, 48, 64)) & ~cat)
    assert cat[upright < 0.8].all() and not cat[upright > 1.2].any()
    assert len(imported(tmp_path / "out", "val")["x.png"]) == 1


def test_xml_shapes_without_pixels_are_counted(tmp_path, capsys):
    write_image(tmp_path / "in/images/a.png")
    shapes = (
        '<box label="cat" xtl="1" ytl="1" xbr="5" ybr="5"></box>' * 2
        + '<points label="cat" points="1,1"></points><polyline label="cat" points="1,1;2,2"></polyline>'
        + polygon("horse", corners(1, 1, 5, 5))
        + '<polygon label="cat" points="1,1;nan,5;4,4"></polygon>'
        + '<mask label="cat" rle="3, 4" left="0" top="0" width="4" height="2"></mask>'
        + '<mask label="cat" rle="0, 8" left="62" top="0" width="4" height="2"></mask>'
        + polygon("cat", corners(10, 10, 20, 20))
    )
    write_xml(tmp_path / "in", image("a.png", shapes))
    assert prepare("cvat", tmp_path / "in", tmp_path / "out") == 2
    message = capsys.readouterr().err
    for words in (
        "2 are boxes",
        "1 are points",
        "1 are polylines",
        "1 have no label",
        "no numbers",
        "2 have an unusable",
    ):
        assert words in message
    assert "8 objects cannot be used" in message and "--skip-bad" in message
    assert prepare("cvat", tmp_path / "in", tmp_path / "out", "--skip-bad") == 0
    assert "objects: 9 found = 1 written + 8 left out" in capsys.readouterr().out
    assert imported(tmp_path / "out", "train")["a.png"] == visible([("cat", box(10, 10, 20, 20))])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ('<track id="0" label="cat"></track>', "export the task as CVAT for images 1.1"),
        (f'<image id="0" name="a.png" width="many" height="{SIZE[0]}"></image>', "width is 'many'"),
        (f'<image id="0" name="a.png" width="{SIZE[0]}" height="{SIZE[1]}"></image>', "height and width are exchanged"),
        (image("b.png", ""), "1 of 1 images are not below"),
        (image("a.png", "") * 2, "lead to one image"),
        ("", "no <image>"),
    ],
)
def test_xml_faults_are_named(tmp_path, capsys, images, words):
    write_image(tmp_path / "in/images/a.png")
    write_xml(tmp_path / "in", images)
    assert prepare("cvat", tmp_path / "in", tmp_path / "out") == 2
    assert words in capsys.readouterr().err


def test_xml_with_a_dtd_or_damage_is_refused(tmp_path):
    laughs = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>'
    for text, words in ((laughs, "document type declaration"), ("<a><b></a>", "not XML"), ("", "not XML")):
        (tmp_path / "x.xml").write_text(text)
        with pytest.raises(DataError, match=words):
            read_xml(tmp_path / "x.xml")


def coco(images: list[str], annotations: list[dict]) -> str:
    entries = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(images, 1)]
    categories = [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "sky", "supercategory": ""}]
    listed = [{"id": i, "iscrowd": 0, **own} for i, own in enumerate(annotations, 1)]
    return json.dumps({"images": entries, "categories": categories, "annotations": listed})


def test_coco_takes_brush_masks_as_instances(tmp_path, capsys):
    write_image(tmp_path / "in/images/default/a.png")
    write_image(tmp_path / "in/images/default/empty.png")
    (tmp_path / "in/annotations").mkdir()
    brush = {"counts": runs_of(disk(20, 20, 8).T), "size": list(SIZE)}
    annotations = [
        {"image_id": 1, "category_id": 1, "iscrowd": 1, "segmentation": brush},
        {"image_id": 1, "category_id": 2, "segmentation": [corners(0, 0, 30, 64)]},
    ]
    path = tmp_path / "in/annotations/instances_default.json"
    path.write_text(coco(["a.png", "empty.png"], annotations))
    assert prepare("cvat", tmp_path / "in", tmp_path / "out", "--stuff", "sky") == 0
    assert "COCO 1.0" in capsys.readouterr().out
    found = imported(tmp_path / "out", "train")
    assert found["a.png"] == visible([("sky", box(0, 0, 30, 64)), ("cat", disk(20, 20, 8))])
    assert found["empty.png"] == visible([])
    assert prepare("cvat", path, tmp_path / "other", "--stuff", "sea") == 2
    assert "no class is called 'sea'" in capsys.readouterr().err


def test_coco_subsets_are_splits_and_may_share_names(tmp_path):
    for subset in ("Train", "Validation"):
        write_image(tmp_path / f"in/images/{subset}/x.png")
        (tmp_path / "in/annotations").mkdir(exist_ok=True)
        own = {"image_id": 1, "category_id": 1, "segmentation": [corners(2, 2, 9, 9 if subset == "Train" else 20)]}
        (tmp_path / f"in/annotations/instances_{subset}.json").write_text(coco(["x.png"], [own]))
    assert prepare("cvat", tmp_path / "in", tmp_path / "out") == 0
    assert imported(tmp_path / "out", "train")["x.png"] == visible([("cat", box(2, 2, 9, 9))])
    assert imported(tmp_path / "out", "val")["x.png"] == visible([("cat", box(2, 2, 9, 20))])


COLORS = {"background": (0, 0, 0), "cat:big": (250, 50, 83), "sky": (51, 221, 255)}


def write_masks(folder: pathlib.Path, name: str, objects: list[tuple[str, np.ndarray]]) -> None:
    classes, instances = np.zeros((*SIZE, 3), np.uint8), np.zeros((*SIZE, 3), np.uint8)
    for row, (label, mask) in enumerate(objects, start=1):
        classes[mask], instances[mask] = COLORS[label], (0, 10 * row, row)
    for part, pixels in (("SegmentationClass", classes), ("SegmentationObject", instances)):
        path = folder / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def masks(tmp_path) -> pathlib.Path:
    """An export as segmentation masks with two images, the second below a folder."""
    root = tmp_path / "in"
    objects = [("sky", box(0, 0, 10, 64)), ("cat:big", disk(20, 20, 9)), ("cat:big", disk(24, 30, 6))]
    for name in ("a", "sub/b"):
        write_image(root / f"JPEGImages/{name}.png")
        write_masks(root, name, objects)
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/default.txt").write_text("a\nsub/b\n")
    return root


def test_segmentation_masks(masks, tmp_path, capsys):
    assert prepare("cvat", masks, tmp_path / "out", "--stuff", "sky") == 0
    assert "Segmentation mask 1.1" in capsys.readouterr().out
    drawn = [("sky", box(0, 0, 10, 64)), ("cat:big", disk(20, 20, 9)), ("cat:big", disk(24, 30, 6))]
    found = imported(tmp_path / "out", "train")
    for name in ("a.png", "b.png"):
        assert found[name] == visible(drawn)


def test_faults_of_segmentation_masks(masks, tmp_path, capsys):
    path = masks / "SegmentationObject/a.png"
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels * (pixels[..., 2:] != 3)).save(path)  # the last object is lost
    (masks / "ImageSets/Segmentation/default.txt").write_text("a\n")
    assert prepare("cvat", masks, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "1 images: pixels of a thing class that SegmentationObject does not number" in text
    assert "1 images are in no list" in text
    lost = disk(24, 30, 6)
    found = imported(tmp_path / "out", "train")["a.png"]
    assert found == visible([("sky", box(0, 0, 10, 64)), ("cat:big", disk(20, 20, 9)), ("", lost)])
    table = (masks / "labelmap.txt").read_text()
    (masks / "labelmap.txt").write_text(table.replace("51,221,255", "51,221,254"))
    assert prepare("cvat", masks, tmp_path / "out") == 2
    assert "stand for no class (--classes), as (51, 221, 255) in 640 pixels" in capsys.readouterr().err
    (masks / "labelmap.txt").write_text(table.replace("51,221,255", "51,221"))
    assert prepare("cvat", masks, tmp_path / "out") == 2
    assert "line 4: 'sky:51,221::' is neither" in capsys.readouterr().err


def test_what_is_no_export_is_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/task.zip").write_bytes(b"")
    assert prepare("cvat", tmp_path / "in", tmp_path / "out") == 2
    assert "unpack the zip file" in capsys.readouterr().err
    write_xml(tmp_path / "in", "")
    (tmp_path / "in/labelmap.txt").write_text("")
    assert prepare("cvat", tmp_path / "in", tmp_path / "out") == 2
    assert "name one by --input FILE" in capsys.readouterr().err
