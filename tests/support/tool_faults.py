"""The likely faults of the exports of annotation tools: their sections of docs/faults.md."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.support.fault_inputs import (
    SIZE,
    SPLIT,
    Change,
    Fault,
    Section,
    edit,
    make_detection,
    put,
    redraw,
    rename,
    together,
    turn,
)
from tests.support.tool_exports import (
    CAT,
    make_cvat,
    make_label_studio,
    make_labelme,
    make_palette,
    make_roboflow,
    make_supervisely,
    make_voc,
    make_yolo,
    save_indices,
    yolo_line,
)


def replace(name: str, old: str, new: str) -> Change:
    """Replaces a text in a file, wherever it is."""

    def apply(root: pathlib.Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return apply


def remove(name: str) -> Change:
    return lambda root: (root / name).unlink()


YOLO = (
    Fault("boxes instead of polygons", yolo_line(0, 0.5, 0.5, 0.2, 0.2)),
    Fault("the same, left out", yolo_line(0, 0.5, 0.5, 0.2, 0.2), flags="--skip-bad"),
    Fault("coordinates in pixels", yolo_line(0, 10, 10, 40, 10, 40, 40)),
    Fault("a class that `names` lacks", yolo_line(1, 0.2, 0.2, 0.6, 0.2, 0.6, 0.6)),
    Fault("a class called background, which becomes stuff", replace("data.yaml", "[disk]", "[disk, background]")),
    Fault(
        "the same, marked as a thing",
        replace("data.yaml", "[disk]", "[disk, background]"),
        flags="--things disk background",
    ),
    Fault("a folder of images that is not there", replace("data.yaml", "train: images", "train: photos")),
    Fault("an image without a label file", remove("labels/b.txt")),
    Fault("an EXIF quarter turn", turn("images/a.jpg", 6)),
    Fault("the same, turned", turn("images/a.jpg", 6), flags="--upright"),
)


def labelme(**values: Any) -> Change:
    return edit("labels/a.json", lambda content: put(content, **values))


def labelme_shape(**values: Any) -> Change:
    return edit("labels/a.json", lambda content: put(content["shapes"][0], **values))


LABELME = (
    Fault("a polygon outside of the image", labelme_shape(points=[[200, 200], [240, 200], [240, 240]])),
    Fault("a point", labelme_shape(shape_type="point", points=[[20, 20]])),
    Fault("an image that is not there", labelme(imagePath="c.jpg")),
    Fault("height and width exchanged", labelme(imageHeight=SIZE[1], imageWidth=SIZE[0])),
)


def indices(path: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Changes the values of a palette PNG."""

    def apply(root: pathlib.Path) -> None:
        with Image.open(root / path) as image:
            values = np.array(image)
        save_indices(root / path, change(values))

    return apply


VOC = (
    Fault("a class index that no name has", indices("SegmentationClass/a.png", lambda v: np.where(v == CAT, 77, v))),
    Fault("an object that lies on the background", indices("SegmentationClass/a.png", lambda values: values * 0)),
    Fault("no PNG of the objects of an image", remove("SegmentationObject/a.png")),
    Fault("an image without a PNG of its classes", remove("SegmentationClass/a.png"), finds="have no PNG"),
)


def soften(values: np.ndarray) -> Image.Image:
    small = Image.fromarray(values).resize((SIZE[1] // 2, SIZE[0] // 2), Image.Resampling.BILINEAR)
    return small.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)


def repaint(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[:2, :5] = (1, 2, 3)
    return values


PALETTE = (
    Fault("a color that the table lacks", redraw("masks/a.png", repaint)),
    Fault("masks softened by resizing or JPEG", redraw("masks/*.png", soften)),
    Fault("an image without a mask", remove("masks/a.png")),
    Fault("masks of class indices", redraw("masks/*.png", lambda values: (values[:, :, 0] > 0).astype(np.uint8))),
)

_BOX = '<box label="disk" xtl="1" ytl="1" xbr="9" ybr="9"></box>'
CVAT = (
    Fault("boxes instead of polygons", replace("annotations.xml", "</polygon>", f"</polygon>{_BOX}")),
    Fault("points", replace("annotations.xml", "</image>", '<points label="disk" points="1,1"></points></image>')),
    Fault("images that are not there", rename("images/a.jpg", "images/c.jpg")),
    Fault("an export of a video", replace("annotations.xml", "</meta>", '</meta><track id="0" label="disk"></track>')),
    Fault(
        "two exports in one folder",
        together(
            lambda root: make_detection(root / "coco"),
            lambda root: (root / "annotations").mkdir(),
            rename("coco/instances.json", "annotations/instances_default.json"),
        ),
    ),
)


def task(**values: Any) -> Change:
    return edit("tasks.json", lambda content: put(content[0], **values))


def region(**values: Any) -> Change:
    return edit("tasks.json", lambda content: put(content[0]["annotations"][0]["result"][0], **values))


def only_predictions(content: Any) -> None:
    for entry in content:
        entry["predictions"] = entry.pop("annotations")


_RECTANGLE = {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 0, "rectanglelabels": ["disk"]}
LABEL_STUDIO = (
    Fault("a rectangle", region(type="rectanglelabels", value=_RECTANGLE)),
    Fault("a key point", region(value={"x": 1, "y": 1, "width": 0.3, "keypointlabels": ["disk"]})),
    Fault("an image that is not there", task(data={"image": "/data/upload/1/c.jpg"})),
    Fault("pre-annotations alone", edit("tasks.json", only_predictions)),
    Fault("the same, taken as labels", edit("tasks.json", only_predictions), flags="--predictions"),
    Fault(
        "two exports in one folder",
        together(lambda root: make_detection(root / "coco"), rename("coco/instances.json", "result.json")),
    ),
)

_COCO = "train/_annotations.coco.json"


def other_classes(root: pathlib.Path) -> None:
    make_roboflow(root / "more")
    (root / "more/train").rename(root / "valid")
    (root / "more").rmdir()
    replace("valid/_annotations.coco.json", '"disk"', '"ball"')(root)


ROBOFLOW = (
    Fault("boxes instead of polygons", edit(_COCO, lambda c: put(c["annotations"][0], segmentation=[]))),
    Fault("an export as YOLO", lambda root: (root / "data.yaml").write_text("names: [disk]\n")),
    Fault("splits with different classes", other_classes),
    Fault(
        "two exports in one folder",
        lambda root: (root / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, disk\n"),
    ),
)


def sly(**values: Any) -> Change:
    return edit("set/ann/a.jpg.json", lambda content: put(content, **values))


def sly_object(**values: Any) -> Change:
    return edit("set/ann/a.jpg.json", lambda content: put(content["objects"][0], **values))


SUPERVISELY = (
    Fault("a rectangle", sly_object(geometryType="rectangle", points={"exterior": [[1, 1], [5, 5]], "interior": []})),
    Fault("a class that `meta.json` lacks", sly_object(classTitle="ball")),
    Fault("an image that is not there", remove("set/img/a.jpg")),
    Fault("height and width exchanged", sly(size={"height": SIZE[1], "width": SIZE[0]})),
)

TOOL_SECTIONS = (
    Section("YOLO", f"prepare yolo --data damaged {SPLIT}", make_yolo, YOLO),
    Section("LabelMe", f"prepare labelme --labels damaged/labels {SPLIT}", make_labelme, LABELME),
    Section("Pascal VOC", f"prepare voc --root damaged {SPLIT}", make_voc, VOC),
    Section(
        "Masks in class colors",
        f"prepare palette --masks damaged/masks --colors damaged/colors.json --images damaged/images {SPLIT}",
        make_palette,
        PALETTE,
    ),
    Section("CVAT", f"prepare cvat --input damaged {SPLIT}", make_cvat, CVAT),
    Section("Label Studio", f"prepare label-studio --input damaged {SPLIT}", make_label_studio, LABEL_STUDIO),
    Section("Roboflow", f"prepare roboflow --input damaged {SPLIT}", make_roboflow, ROBOFLOW),
    Section("Supervisely", f"prepare supervisely --input damaged {SPLIT}", make_supervisely, SUPERVISELY),
)
