"""The kinds of faults in people's files: the sections of docs/faults.md."""

from __future__ import annotations

import json
import pathlib
import unicodedata
from typing import Any

import numpy as np
from PIL import Image

from pfcn_jax.codec import write_id_png
from tests.support.fault_inputs import (
    IDS,
    SIZE,
    SPLIT,
    Change,
    Fault,
    Section,
    cut,
    deep_image,
    edit,
    make_detection,
    make_masks,
    make_panoptic,
    make_photos,
    make_scoring,
    make_semantic,
    photo,
    put,
    put_all,
    redraw,
    rename,
    save_photos,
    together,
    turn,
)
from tests.support.tool_faults import TOOL_SECTIONS


def first(part: str, **values: Any) -> Change:
    """Changes keys of the first entry of a list in the detection JSON."""
    return edit("instances.json", lambda content: put(content[part][0], **values))


def polygon(*polygons: Any) -> Change:
    return first("annotations", segmentation=list(polygons))


EXIF_TURN = together(turn("images/a.jpg", 6), first("images", height=SIZE[1], width=SIZE[0]))
HALF = [0.1, 0.1, 0.5, 0.1, 0.5, 0.5]
INSTANCES = (
    Fault("two images with one id", edit("instances.json", lambda c: put(c["images"][1], id=0))),
    Fault("two images with one file name", edit("instances.json", lambda c: put(c["images"][1], file_name="a.jpg"))),
    Fault('`"iscrowd": "0"`', first("annotations", iscrowd="0")),
    Fault("an id as text in one place, a number in the other", first("annotations", image_id="0")),
    Fault("a height of null", first("images", height=None)),
    Fault("a file name of null", first("images", file_name=None)),
    Fault("a huge number", first("images", width=10**400)),
    Fault("a list at the top", edit("instances.json", lambda c: c["annotations"])),
    Fault(
        "a byte-order mark",
        lambda root: (root / "instances.json").write_bytes(b"\xef\xbb\xbf" + (root / "instances.json").read_bytes()),
    ),
    Fault("polygons in 0..1", polygon(HALF)),
    Fault("a polygon outside of the image", polygon([200, 200, 240, 200, 240, 240])),
    Fault("a polygon of two points", polygon([5, 5, 20, 20])),
    Fault("points in lists of their own", polygon([5, 5], [20, 5], [20, 20])),
    Fault("an empty segmentation", polygon()),
    Fault("a box alone", edit("instances.json", lambda c: c["annotations"][0].pop("segmentation") and None)),
    Fault("the same, left out", polygon(HALF), flags="--skip-bad"),
    Fault("every instance is a crowd", edit("instances.json", lambda c: put_all(c["annotations"], iscrowd=1))),
    Fault(
        "the same, taken as instances",
        edit("instances.json", lambda c: put_all(c["annotations"], iscrowd=1)),
        flags="--crowds-as-instances",
    ),
    Fault("an RLE that does not add up", first("annotations", segmentation={"size": list(SIZE), "counts": [5, 10]})),
    Fault("an EXIF quarter turn, polygons and sizes of the upright image", EXIF_TURN),
    Fault("the same, turned", EXIF_TURN, flags="--upright"),
    Fault("an EXIF half turn", turn("images/a.jpg", 3)),
    Fault("height and width exchanged", first("images", height=SIZE[1], width=SIZE[0])),
    Fault("backslashes in a file name", first("images", file_name="images\\a.jpg")),
    Fault("a folder too deep", first("images", file_name="images/a.jpg")),
    Fault(
        "a file name with decomposed accents, composed in the JSON",
        together(
            first("images", file_name=unicodedata.normalize("NFC", "kuh-ä.jpg")),
            rename("images/a.jpg", "images/" + unicodedata.normalize("NFD", "kuh-ä.jpg")),
        ),
    ),
    Fault(
        "a category that repeats a name and that nothing uses (Roboflow)",
        edit("instances.json", lambda c: c["categories"].append({"id": 0, "name": "disk"})),
        finds="is unused",
    ),
)


def soften(values: np.ndarray) -> np.ndarray:
    white = Image.fromarray(values * 255)
    small = white.resize((SIZE[1] // 2, SIZE[0] // 2), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC))


def with_ring(values: np.ndarray) -> np.ndarray:
    edge = np.diff(values.astype(int), axis=1, append=0) != 0
    return np.where(edge, 255, values).astype(np.uint8)


def large_png(root: pathlib.Path) -> None:
    (root / "images/a.jpg").unlink()
    Image.new("1", (14_000, 14_000)).save(root / "images/a.png", compress_level=1)


MASKS = (
    Fault("an image without a mask, a mask without an image", rename("masks/b.png", "masks/other.png")),
    Fault("masks called `NAME_mask.png`", rename("masks/b.png", "masks/b_mask.png")),
    Fault(
        "masks called `NAME.PNG`, `NAME.tif`",
        together(
            rename("masks/b.png", "masks/b.PNG"),
            lambda root: Image.open(root / "masks/a.png").save(root / "masks/a.tif"),
            lambda root: (root / "masks/a.png").unlink(),
        ),
    ),
    Fault("two masks of one image", lambda root: Image.open(root / "masks/a.png").save(root / "masks/a_mask.png")),
    Fault("a ring of 255 around the objects", redraw("masks/*.png", with_ring)),
    Fault("the same, ignored", redraw("masks/*.png", with_ring), flags="--ignore 255"),
    Fault("masks softened by resizing or JPEG", redraw("masks/*.png", soften)),
    Fault("the same, cut at a value", redraw("masks/*.png", soften), flags="--threshold 128"),
    Fault("masks of 0 and 255", redraw("masks/*.png", lambda values: values * 255)),
    Fault(
        "masks in colors, one for each instance",
        redraw("masks/*.png", lambda v: np.stack([v * 255, v, v * 90], axis=-1)),
    ),
    Fault("an EXIF half turn", turn("images/a.jpg", 3)),
    Fault("a HEIC file among the images", lambda root: (root / "images/c.heic").write_bytes(b"x"), finds="c.heic"),
    Fault("a hidden `._a.jpg`", lambda root: (root / "images/._a.jpg").write_bytes(b"x")),
    Fault("a `.jfif` file", rename("images/a.jpg", "images/a.jfif")),
    Fault("an image of 196 megapixels", large_png),
    Fault("an image of 16 bits a channel", deep_image("images/a.jpg")),
    Fault("an image cut short", cut("images/a.jpg")),
)


def colored(values: np.ndarray) -> np.ndarray:
    return np.array([[0, 0, 200], [200, 30, 0]], np.uint8)[values]


SEMANTIC = (
    Fault(
        "masks in the colors of the classes",
        together(
            redraw("masks/*.png", colored),
            edit(
                "classes.json",
                lambda classes: [c | {"color": [200, 30, 0] if c["id"] else [0, 0, 200]} for c in classes],
            ),
        ),
    ),
    Fault("masks in other colors", redraw("masks/*.png", colored)),
    Fault("a value that is no class", redraw("masks/*.png", lambda values: values * 7)),
    Fault("an image without a mask", lambda root: (root / "masks/a.png").unlink()),
)

TRAIN_JSON = "annotations/panoptic_train.json"


def segment(**values: Any) -> Change:
    return edit(TRAIN_JSON, lambda content: put(content["annotations"][0]["segments_info"][0], **values))


def only_crowds(content: Any) -> None:
    for annotation in content["annotations"]:
        put(annotation["segments_info"][0], iscrowd=1)


def as_mode(mode: str) -> Change:
    return redraw("annotations/panoptic_train/a.png", lambda values: Image.fromarray(values).convert(mode))


def exchange(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[:, :, ::-1])


def colors(split: str, value: Any) -> Change:
    return edit(f"annotations/panoptic_{split}.json", lambda c: put_all(c["categories"], color=value))


def detection_instead(root: pathlib.Path) -> None:
    for split in ("train", "val"):
        (root / f"annotations/panoptic_{split}.json").unlink()
    content = {"images": [], "annotations": [], "categories": []}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))


def second_label(content: Any) -> None:
    content["images"].append(content["images"][0] | {"id": 9})
    content["annotations"].append(content["annotations"][0] | {"image_id": 9, "file_name": "b.png"})


VALIDATE = (
    Fault('`"iscrowd": "0"`', segment(iscrowd="0"), code="value-invalid"),
    Fault("a segment id as text", segment(id="70001"), code="value-invalid"),
    Fault(
        "segments_info of null",
        edit(TRAIN_JSON, lambda c: put(c["annotations"][0], segments_info=None)),
        code="value-invalid",
    ),
    Fault("a height of null", edit(TRAIN_JSON, lambda c: put(c["images"][0], height=None)), code="value-invalid"),
    Fault("a list at the top", edit(TRAIN_JSON, lambda c: c["annotations"]), code="json-part-missing"),
    Fault("a PNG written as BGR", redraw("annotations/panoptic_train/a.png", exchange), code="id-unlisted"),
    Fault("a PNG with alpha", as_mode("RGBA"), code="label-format"),
    Fault("a PNG with a palette", as_mode("P"), code="label-format"),
    Fault("a gray PNG", as_mode("L"), code="label-format"),
    Fault("a PNG cut short", cut("annotations/panoptic_train/a.png"), code="label-unreadable"),
    Fault(
        "height and width exchanged",
        edit(TRAIN_JSON, lambda c: put(c["images"][0], height=SIZE[1], width=SIZE[0])),
        code="picture-size",
    ),
    Fault("an EXIF half turn", turn("train/a.jpg", 3), code="image-rotated"),
    Fault("all things are crowds", edit(TRAIN_JSON, only_crowds), code="no-instances"),
    Fault("the same, by class", edit(TRAIN_JSON, only_crowds), code="class-crowds-only"),
    Fault('colors as `"#rrggbb"`', colors("train", "#102030")),
    Fault("colors that differ between the splits", colors("train", [1, 2, 3])),
    Fault(
        "classes that differ between the splits",
        edit(TRAIN_JSON, lambda c: put(c["categories"][0], name="ball")),
        code="splits-differ",
    ),
    Fault("two label maps of one image", edit(TRAIN_JSON, second_label), code="labels-contradict"),
    Fault("a detection JSON in place of a panoptic one", detection_instead, code="no-split"),
    Fault(
        "backslashes in a file name",
        edit(TRAIN_JSON, lambda c: put(c["images"][0], file_name="train\\a.jpg")),
        code="picture-missing",
    ),
    Fault("an image of 16 bits a channel", deep_image("train/a.jpg"), code="picture-format"),
)

TRAIN = (
    Fault("all things are crowds", edit(TRAIN_JSON, only_crowds)),
    Fault('`"iscrowd": "0"`', segment(iscrowd="0")),
    Fault("no split is named train", rename(TRAIN_JSON, "annotations/panoptic_old.json")),
)


def predicted(**values: Any) -> Change:
    return edit("pred.json", lambda content: put(content["annotations"][0]["segments_info"][0], **values))


def exchange_categories(content: Any) -> None:
    for annotation in content["annotations"]:
        for one in annotation["segments_info"]:
            one["category_id"] = 3 - one["category_id"]


def text_ids(content: Any) -> None:
    for annotation in content["annotations"]:
        put(annotation, image_id=str(annotation["image_id"]))


def nothing_of_things(root: pathlib.Path) -> None:
    for side in ("gt", "pred"):
        for path in (root / side).iterdir():
            write_id_png(path, np.full(SIZE, IDS[1], np.int32))
        edit(
            f"{side}.json",
            lambda c: [a.update(segments_info=[{"id": IDS[1], "category_id": 2}]) for a in c["annotations"]] and None,
        )(root)


EVALUATE = (
    Fault("PNGs written as BGR", redraw("pred/*.png", exchange)),
    Fault("PNGs with alpha", redraw("pred/*.png", lambda values: Image.fromarray(values).convert("RGBA"))),
    Fault(
        "category ids of another list, masks that match", edit("pred.json", exchange_categories), finds="PQ is 0, but"
    ),
    Fault("no thing to find, none found", nothing_of_things, finds="Things "),
    Fault('`"iscrowd": "0"`', predicted(iscrowd="0")),
    Fault("a category id as text", predicted(category_id="1")),
    Fault("a category that the labels lack", predicted(category_id=7)),
    Fault("image ids as text", edit("pred.json", text_ids)),
    Fault("a list at the top", edit("pred.json", lambda c: c["annotations"])),
    Fault("labels of another size", redraw("pred/a.png", lambda values: np.repeat(values, 2, axis=0))),
)

PREDICT = (
    Fault("an image that the labels do not list", lambda root: photo(5).save(root / "images/c.jpg")),
    Fault(
        "an image of the same name in another folder",
        edit("labels.json", lambda c: put(c["images"][0], file_name="val/a.jpg")),
    ),
    Fault("two images of one name", lambda root: save_photos(root / "more"), flags="damaged/more"),
    Fault("a name that is listed under two ids", edit("labels.json", lambda c: put(c["images"][1], file_name="a.jpg"))),
)

SECTIONS = (
    Section(
        "A COCO detection JSON",
        f"prepare instances --json damaged/instances.json --images damaged/images {SPLIT}",
        make_detection,
        INSTANCES,
    ),
    Section(
        "Instance masks",
        f"prepare masks --masks disk=damaged/masks --images damaged/images {SPLIT}",
        make_masks,
        MASKS,
    ),
    Section(
        "Semantic masks",
        f"prepare semantic --masks damaged/masks --classes damaged/classes.json --images damaged/images {SPLIT}",
        make_semantic,
        SEMANTIC,
    ),
    *TOOL_SECTIONS,
    Section(
        "A COCO-panoptic folder",
        "validate-data --config configs/own_data.py --config.data.root=damaged",
        make_panoptic,
        VALIDATE,
    ),
    Section(
        "Training on it",
        "--config configs/own_data.py --config.data.root=damaged --workdir damaged/run",
        make_panoptic,
        TRAIN,
    ),
    Section(
        "Scoring of files",
        "evaluate --gt-json damaged/gt.json --gt-dir damaged/gt --pred-json damaged/pred.json --pred-dir damaged/pred",
        make_scoring,
        EVALUATE,
    ),
    Section(
        "Prediction with the ids of labels",
        "predict --checkpoint runs/own --output out --ids-of damaged/labels.json damaged/images",
        make_photos,
        PREDICT,
    ),
)
