"""`prepare label-studio`: what Label Studio exports as JSON, COCO, or PNG masks of brush labels.

Label Studio has no layers: where objects overlap, the smaller one lies above the larger.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from pfcn_jax.data.example import DataError
from pfcn_jax.data.importers.brush_rle import HALF
from pfcn_jax.data.importers.common import Found, nothing_labelled, sort_classes, write_dataset
from pfcn_jax.data.importers.exports import add_export_flags, from_coco_exports, list_export_images
from pfcn_jax.data.importers.files import read_json
from pfcn_jax.data.importers.instances import DetectionOptions
from pfcn_jax.data.importers.label_studio_json import (
    NOT_ANNOTATED,
    Task,
    UploadIndex,
    image_of,
    label_names,
    read_objects,
    read_tasks,
)
from pfcn_jax.data.importers.labelled import Labelled
from pfcn_jax.data.importers.mask_files import read_values
from pfcn_jax.data.importers.objects import LabelObject, draw_objects
from pfcn_jax.data.importers.registry import register

_JSON, _JSON_MIN, _COCO, _PNG = "JSON", "JSON-MIN", "COCO", "PNG masks"
# task-1-annotation-2-by-3-TAG-LABEL-0.png; neither the annotator nor the tag has a dash
_MASK = re.compile(r"task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-]*-[^-]+-(?P<label>.+)-\d+\.png")
UNLISTED = "are in no task"

ReadObjects = Callable[[Task, tuple[int, int]], list[LabelObject]]


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_export_flags(parser, "folder of the unpacked export, or its JSON file", own_splits=False)
    parser.add_argument(
        "--predictions",
        action="store_true",
        help="take the predictions (pre-annotations) of tasks that nobody annotated as their labels",
    )


@register("label-studio", help="an export of Label Studio (JSON, COCO, PNG) -> COCO-panoptic", add_flags=add_flags)
def run(args: argparse.Namespace) -> list[str]:
    path = pathlib.Path(args.input)
    kind, file, content = _recognize(path)
    root = path if path.is_dir() else path.parent
    images = UploadIndex(*list_export_images(args, root))
    masks = _list_masks(root) if kind in (_JSON_MIN, _PNG) else {}
    if kind == _COCO:
        options = DetectionOptions(args.background, args.skip_bad, things=args.things, stuff=args.stuff)
        found = from_coco_exports({"train": (file, images)}, options)
    elif kind == _JSON:
        tasks = read_tasks(content, file, use_predictions=args.predictions)
        found = _from_tasks(tasks, label_names(tasks), read_objects, file, images, args)
    elif masks:
        kind = _PNG
        images = UploadIndex(images.folder, [own for own in images.files if not _MASK.fullmatch(own.name)])
        names = sorted({mask.label for own in masks.values() for mask in own})
        found = _from_tasks(_tasks_of_rows(content, file, masks), names, _objects_of_masks, file, images, args)
    else:
        raise DataError(f"{file}: a JSON-MIN export without PNG masks beside it; export JSON", kind="label-format")
    return [f"{file}: Label Studio's {kind}", *write_dataset(args, found)]


def _recognize(path: pathlib.Path) -> tuple[str, pathlib.Path, Any]:
    """The kind, the JSON file and its content.

    Raises:
      DataError: there is no JSON of an export, or several.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    found: list[tuple[str, pathlib.Path, Any]] = []
    for file in files:
        content = read_json(file)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            found.append((_COCO, file, content))
        elif isinstance(content, list) and content and isinstance(content[0], dict):
            found.append((_JSON if "data" in content[0] else _JSON_MIN, file, content))
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{path}: {found[0][1].name} ({found[0][0]}) and {found[1][1].name} ({found[1][0]}); name one by --input "
            "FILE",
            kind="label-format",
        )
    if path.is_dir() and _list_masks(path):
        raise DataError(
            f"{path}: PNG masks, whose names say the task, not the image; put the JSON or JSON-MIN export beside them",
            kind="json-missing",
        )
    raise DataError(
        f"{path}: no export of Label Studio (JSON, COCO, or PNG masks with a JSON-MIN)", kind="json-missing"
    )


def _from_tasks(
    tasks: Sequence[Task],
    names: Sequence[str],
    read: ReadObjects,
    file: pathlib.Path,
    images: UploadIndex,
    args: argparse.Namespace,
) -> Found:
    """The images and labels of tasks, each drawn from the objects that `read` finds.

    Raises:
      DataError: no task has labels, or an image is missing.
    """
    used = [task for task in tasks if task.results is not None]
    left_out: dict[str, list[str]] = {}
    for task in tasks:
        if task.left_out:
            left_out.setdefault(task.left_out, []).append(task.image)
    if not used:
        raise nothing_labelled(left_out)
    classes, background = sort_classes(args, names, is_complete=False)
    by_path = dict(zip(images.require_all([task.image for task in used], file), used))

    def label(path: pathlib.Path, size: tuple[int, int]) -> Labelled:
        return draw_objects(read(by_path[path], size), size, classes, background)

    others = {path for task in tasks if task.results is None and (path := images.find(task.image)) is not None}
    notes = []
    if several := sum(task.others > 0 for task in used):
        notes.append(f"warning: {several} images have several annotations: the ground truth, else the latest, is used")
    if empty := sum(not task.results for task in used):
        notes.append(f"warning: {empty} images have an empty annotation and are written as background only")
    return Found(
        classes,
        {"train": sorted(by_path)},
        label,
        {**left_out, **images.unlisted({*by_path, *others}, UNLISTED)},
        notes,
        args.skip_bad,
    )


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A mask of the PNG export: the alpha of a brush region."""

    path: pathlib.Path
    label: str
    annotation: int

    def draw(self, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        return read_values(self.path, size) >= HALF


def _list_masks(folder: pathlib.Path) -> dict[int, list[_Mask]]:
    """The masks below a folder by the id of their task."""
    masks: dict[int, list[_Mask]] = {}
    for path in sorted(folder.rglob("*.png")):
        if (match := _MASK.fullmatch(path.name)) is not None:
            one = _Mask(path, match["label"], int(match["annotation"]))
            masks.setdefault(int(match["task"]), []).append(one)
    return masks


def _tasks_of_rows(content: Sequence[Any], file: pathlib.Path, masks: Mapping[int, Sequence[_Mask]]) -> list[Task]:
    """Tasks whose results are the masks of their last annotation.

    Args:
      content: of a JSON-MIN export, a row an annotation.

    Raises:
      DataError: a row is no object or has no image; or the masks of a task that no row has.
    """
    rows: dict[int, tuple[str, Mapping[str, Any]]] = {}
    for position, row in enumerate(content):
        name = f"{file}: row [{position}]"
        if not isinstance(row, dict) or type(row.get("id")) is not int:
            raise DataError(f"{name}: must be an object with the id of its task, a number", kind="value-invalid")
        rows[row["id"]] = (name, row)
    strangers = sorted(set(masks) - set(rows))
    if strangers:
        raise DataError(f"{masks[strangers[0]][0].path}: task {strangers[0]} is not in {file}", kind="label-missing")
    tasks = []
    for task_id, (name, row) in rows.items():
        own = masks.get(task_id, ())
        annotations = sorted({mask.annotation for mask in own})
        results = [mask for mask in own if mask.annotation == annotations[-1]]
        is_done = row.get("annotation_id") is not None
        others = max(len(annotations) - 1, 0)
        image = image_of(row, name)
        tasks.append(Task(name, image, results if is_done else None, "" if is_done else NOT_ANNOTATED, others))
    return tasks


def _objects_of_masks(task: Task, size: tuple[int, int]) -> list[LabelObject]:
    return [LabelObject(str(mask.path), mask.label, (mask,)) for mask in task.results or ()]
