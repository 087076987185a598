"""The kinds of damage that a data set can have, each with a severity and a meaning, and how to report them."""

from __future__ import annotations

from collections.abc import Callable

from pfcn_jax.data.example import DataError

Report = Callable[[str, str], None]  # (kind, message)

ERROR, WARNING = "error", "warning"  # an error stops training or teaches wrong things
KINDS: dict[str, tuple[str, str]] = {
    "data-missing": (ERROR, "a folder of data is not there, or holds nothing of what is looked for"),
    "no-split": (ERROR, "no split to train on or to score was found"),
    "json-missing": (ERROR, "the panoptic JSON is not there"),
    "json-broken": (ERROR, "a JSON cannot be parsed"),
    "json-part-missing": (ERROR, "the JSON lacks categories, images or annotations"),
    "category-invalid": (ERROR, "a category without id, name or isthing, or twice"),
    "entry-incomplete": (ERROR, "an entry of the JSON lacks a key"),
    "value-invalid": (ERROR, "a value of the JSON has another type or range than it must have"),
    "image-repeated": (ERROR, "an image id appears twice"),
    "labels-contradict": (ERROR, "one file has two label maps that contradict each other"),
    "annotation-without-image": (ERROR, "an annotation belongs to no image"),
    "segmentation-invalid": (ERROR, "objects of a label file that cannot be used, as polygons of two points"),
    "category-unknown": (ERROR, "a segment has a category that is not declared"),
    "segment-id-invalid": (ERROR, "a segment id is 0 or too large for three bytes"),
    "segment-id-repeated": (ERROR, "a segment id appears twice in one image"),
    "picture-missing": (ERROR, "an image file is not there"),
    "picture-unreadable": (ERROR, "an image is damaged or cut short"),
    "picture-format": (ERROR, "an image has more than 8 bits a channel"),
    "image-too-large": (ERROR, "an image has more pixels than the limit"),
    "picture-size": (ERROR, "an image has another size than the JSON says"),
    "label-missing": (ERROR, "a label file is not there"),
    "label-unreadable": (ERROR, "a label file is damaged or no PNG"),
    "label-format": (ERROR, "a label PNG has another format than its layout asks for"),
    "label-size": (ERROR, "labels have another size than their image"),
    "label-value": (ERROR, "labels hold a value that stands for no class"),
    "id-unlisted": (ERROR, "segment ids are painted but not in the JSON"),
    "id-unpainted": (ERROR, "segment ids are in the JSON but have no pixels"),
    "no-canvas": (ERROR, "an image fits on none of the configured canvases"),
    "no-thing": (ERROR, "none of the classes is a thing; the method needs one"),
    "no-instances": (ERROR, "the split has no instance to learn from: all things are crowds, or there are none"),
    "splits-differ": (ERROR, "the splits have different classes"),
    "unusable": (ERROR, "something else that stops training"),
    "image-rotated": (WARNING, "EXIF turns the image for viewers; labels must belong to the pixels as stored"),
    "class-crowds-only": (WARNING, "a thing class that appears only in crowds; it is not learned"),
    "area-differs": (WARNING, "an area in the JSON is not that of the pixels"),
    "box-differs": (WARNING, "a box in the JSON is not that of the pixels"),
    "image-without-annotation": (WARNING, "an image has no labels; it is left out"),
    "picture-repeated": (WARNING, "one image stands under several image ids, or twice in a split"),
    "picture-in-both-splits": (WARNING, "the same image is learned from and scored"),
    "file-unlisted": (WARNING, "files that no JSON mentions; they are not read"),
    "stuff-repeated": (WARNING, "a stuff class has several segments in one image; usual is one"),
    "stuff-crowd": (WARNING, "a stuff segment is marked as a crowd"),
    "nothing-labelled": (WARNING, "an image without any segment"),
    "too-many-segments": (WARNING, "more segments than data.max_segments; the smallest are dropped"),
    "too-many-positives": (WARNING, "more (instance, level) pairs than targets.max_positives; some may not be learned"),
    "too-many-instances": (WARNING, "more instances than inference.max_things can find"),
    "segment-vanishes": (WARNING, "an instance too small for 1/4 of the training size; it is not learned"),
    "class-empty": (WARNING, "a class without any segment in this split"),
}


def raise_errors(kind: str, message: str) -> None:
    """The `Report` of training: errors raise `DataError`, warnings are dropped."""
    if KINDS[kind][0] == ERROR:
        raise DataError(message, kind=kind)
