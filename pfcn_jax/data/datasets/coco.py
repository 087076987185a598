"""A folder in the COCO-panoptic layout, with any categories.

    <root>/<split>/*.jpg                              pictures
    <root>/annotations/panoptic_<split>.json          categories, images, annotations with segments_info
    <root>/annotations/panoptic_<split>/*.png         segment ids, R + 256 G + 65536 B, 0 = void

The instance masks are those of the panoptic PNG, without overlaps (training on COCO's overlapping polygons, as the
original implementation can, is not offered).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_ids, decode_picture
from pfcn_jax.data.segments import count_pixels, find_runs
from pfcn_jax.data.sources import DataError, Example, ExampleInfo, check_index
from pfcn_jax.utils.retry import retry_read

VOID_ID = 0  # colour of unlabelled pixels in a panoptic PNG


@dataclasses.dataclass(frozen=True)
class PanopticIndex:
    """A panoptic JSON as flat arrays: COCO's train2017 takes 20 MB instead of over a gigabyte of dictionaries.

    The segments of example i are rows offset[i]..offset[i + 1] - 1 of the last three fields, in the order of the file.
    """

    classes: ClassTable
    image_ids: tuple[int | str, ...]
    file_names: tuple[str, ...]
    label_names: tuple[str, ...]
    size: Int32[np.ndarray, "examples 2"]
    offset: Int[np.ndarray, " examples_and_one"]
    segment_id: Int32[np.ndarray, " segments"]
    class_id: Int32[np.ndarray, " segments"]
    is_crowd: Bool[np.ndarray, " segments"]

    def __len__(self) -> int:
        return len(self.image_ids)

    def segments(self, index: int) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Segment ids, class ids and crowd flags of one example."""
        rows = slice(self.offset[index], self.offset[index + 1])
        return self.segment_id[rows], self.class_id[rows], self.is_crowd[rows]


def read_index(path: str | os.PathLike[str]) -> PanopticIndex:
    """`parse_index` of a file, which must exist."""
    try:
        data = pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such panoptic JSON", kind="json-missing") from error
    return parse_index(data, os.fspath(path))


def parse_index(data: bytes, path: str) -> PanopticIndex:
    """`index_content` of JSON text.

    Raises:
      DataError: not JSON, or as `index_content`.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", kind="json-broken") from error
    return index_content(content, path)


def index_content(content: Mapping[str, Any], path: str) -> PanopticIndex:
    """Checks the content of a panoptic JSON. Examples are the annotated ones of `images`, in its order.

    Args:
      path: its name, for messages.

    Raises:
      DataError: a part or a key is missing, an image id appears twice in `images` or in `annotations`, an annotation
        without an image, or a segment of an unknown category or with an unusable id.
    """
    missing = [key for key in ("categories", "images", "annotations") if key not in content]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}; is it a COCO-panoptic file?", kind="json-part-missing")
    try:
        classes = ClassTable.from_coco(content["categories"])
    except ValueError as error:
        raise DataError(f"{path}: {error}", kind="category-invalid") from error
    images = _by_image_id(path, content["images"], "id", "images")
    annotations = _by_image_id(path, content["annotations"], "image_id", "annotations")
    for image_id in annotations:
        if image_id not in images:
            raise DataError(f"{path}: the annotation of image {image_id} has no entry in images")
    labelled = [(image, annotations[image_id]) for image_id, image in images.items() if image_id in annotations]
    if not labelled:
        raise DataError(f"{path}: no annotated image")
    try:
        return _flatten(path, classes, labelled)
    except KeyError as error:
        raise DataError(f"{path}: an entry of images or annotations has no {error}") from error


def _by_image_id(path: str, entries: Iterable[Mapping[str, Any]], key: str, part: str) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for entry in entries:
        if key not in entry:
            raise DataError(f"{path}: an entry of {part} has no {key!r} (it has {sorted(entry)})")
        if entry[key] in table:
            raise DataError(f"{path}: image id {entry[key]} appears twice in {part}")
        table[entry[key]] = entry
    return table


def _flatten(
    path: str, classes: ClassTable, labelled: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> PanopticIndex:
    class_of_category = classes.class_of_category
    offset, segment_id, class_id, is_crowd = [0], [], [], []
    for image, annotation in labelled:
        own: set[int] = set()
        for segment in annotation["segments_info"]:
            where = f"{path}: image {image['id']}, segment {segment['id']}"
            if segment["category_id"] not in class_of_category:
                raise DataError(f"{where}: unknown category {segment['category_id']}")
            if not VOID_ID < segment["id"] < 1 << 24:
                raise DataError(f"{where}: a segment id must be in 1..{(1 << 24) - 1} (0 is void)")
            if segment["id"] in own:
                raise DataError(f"{where}: this segment id appears twice")
            own.add(segment["id"])
            segment_id.append(segment["id"])
            class_id.append(class_of_category[segment["category_id"]])
            is_crowd.append(bool(segment.get("iscrowd", 0)))
        offset.append(len(segment_id))
    return PanopticIndex(
        classes=classes,
        image_ids=tuple(image["id"] for image, _ in labelled),
        file_names=tuple(image["file_name"] for image, _ in labelled),
        label_names=tuple(annotation["file_name"] for _, annotation in labelled),
        size=np.array([(image["height"], image["width"]) for image, _ in labelled], np.int32),
        offset=np.array(offset, np.int64),
        segment_id=np.array(segment_id, np.int32),
        class_id=np.array(class_id, np.int32),
        is_crowd=np.array(is_crowd, bool),
    )


def make_example(
    image: UInt8[np.ndarray, "h w 3"],
    ids: Int32[np.ndarray, "h w"],
    segments: tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]],
    info: ExampleInfo,
    *,
    picture_name: str,
    label_name: str,
) -> Example:
    """A picture, its ids as painted and its segments as listed -> an Example (row i is the i-th listed segment).

    Args:
      segments: segment ids, class ids and crowd flags.
      picture_name: for the messages.
      label_name: likewise.

    Raises:
      DataError: sizes that differ, painted ids that are not listed, or listed ids that are not painted.
    """
    segment_id, class_id, is_crowd = segments
    if image.shape[:2] != info.size:
        raise DataError(
            f"{picture_name}: has size {image.shape[1]} x {image.shape[0]} but the JSON says "
            f"{info.size[1]} x {info.size[0]}; is it another picture, or was it rotated or resized?",
            kind="picture-size",
        )
    if image.shape[:2] != ids.shape:
        raise DataError(
            f"{picture_name}: has size {image.shape[1]} x {image.shape[0]} but its labels {label_name} have "
            f"{ids.shape[1]} x {ids.shape[0]}",
            kind="label-size",
        )
    runs = find_runs(ids)
    order = np.argsort(segment_id)
    known = np.concatenate([[VOID_ID], segment_id[order]])
    row_of_known = np.concatenate([[0], order + 1]).astype(np.int32)
    position = np.minimum(np.searchsorted(known, runs.value), known.size - 1)
    strangers = known[position] != runs.value
    if strangers.any():
        listed = np.unique(runs.value[strangers])
        raise DataError(
            f"{label_name}: segment ids {_shorten(listed)} are painted but not in the JSON", kind="id-unlisted"
        )
    rows = dataclasses.replace(runs, value=row_of_known[position])
    unpainted = segment_id[count_pixels(rows, len(segment_id)) == 0]
    if unpainted.size:
        raise DataError(
            f"{label_name}: segment ids {_shorten(unpainted)} are in the JSON but have no pixels", kind="id-unpainted"
        )
    return Example(
        image=image,
        runs=rows,
        class_id=class_id,
        is_crowd=is_crowd,
        image_id=info.image_id,
        file_name=info.file_name,
    )


def _shorten(ids: Int[np.ndarray, " n"]) -> str:
    return ", ".join(str(value) for value in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


class PanopticFiles:
    """A panoptic JSON with the files that it names, wherever they lie: a `Source`. Subclasses say where."""

    index: PanopticIndex

    def picture_name(self, index: int) -> str:
        """The whole name of picture `index`, for `read` and for messages."""
        raise NotImplementedError

    def label_name(self, index: int) -> str:
        """The whole name of the panoptic PNG of example `index`."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """The bytes of a file; OSError or KeyError if it cannot be read."""
        raise NotImplementedError

    @property
    def classes(self) -> ClassTable:
        return self.index.classes

    def __len__(self) -> int:
        return len(self.index)

    def info(self, index: int) -> ExampleInfo:
        check_index(index, len(self))
        height, width = self.index.size[index].tolist()
        return ExampleInfo(self.index.image_ids[index], self.index.file_names[index], (height, width))

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self.index.size

    def read_files(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of the picture and of the panoptic PNG.

        Raises:
          DataError: one of them cannot be read.
        """
        contents = []
        for what, name in (("picture", self.picture_name(index)), ("label", self.label_name(index))):
            try:
                contents.append(self.read(name))
            except (OSError, KeyError) as error:
                reason = getattr(error, "strerror", None) or error
                raise DataError(
                    f"{name} (image {self.index.image_ids[index]}): cannot be read ({reason})", kind=f"{what}-missing"
                ) from error
        return contents[0], contents[1]

    def decode(self, index: int, picture: bytes, labels: bytes) -> Example:
        """The example of bytes that `read_files` gave, checked (see `make_example`)."""
        info = self.info(index)
        picture_name = f"{self.picture_name(index)} (image {info.image_id})"
        label_name = f"{self.label_name(index)} (image {info.image_id})"
        return make_example(
            decode_picture(picture, picture_name),
            decode_ids(labels, label_name),
            self.index.segments(index),
            info,
            picture_name=picture_name,
            label_name=label_name,
        )

    def __getitem__(self, index: int) -> Example:
        check_index(index, len(self))
        return self.decode(index, *self.read_files(index))


class CocoFolder(PanopticFiles):
    """A COCO-panoptic folder as a `Source`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        images_dir: str | os.PathLike[str] = "",
        json_file: str | os.PathLike[str] = "",
        labels_dir: str | os.PathLike[str] = "",
        read: Callable[[pathlib.Path], PanopticIndex] = read_index,
    ):
        """Finds and checks the folder; pictures and PNGs are opened when their example is read.

        Args:
          root: the data directory; the three options below are relative to it.
          split: the part, as `train2017`.
          images_dir: default: `<split>` or `images/<split>` or `images`, the first that exists.
          json_file: default: `annotations/panoptic_<split>.json` or `panoptic_<split>.json`.
          labels_dir: default: the JSON's path without `.json`.
          read: how the JSON is read (`lint` reads past what is wrong in it).

        Raises:
          DataError: a part is missing (the message lists where it was looked for), or the JSON is not right.
        """
        base = pathlib.Path(root)
        if not base.is_dir():
            raise DataError(f"{base}: no such data directory")
        json_names = [json_file] if json_file else [f"annotations/panoptic_{split}.json", f"panoptic_{split}.json"]
        json_path = _first_existing(base, json_names, f"the panoptic JSON of split {split!r}", "json-missing")
        image_names = [images_dir] if images_dir else [split, f"images/{split}", "images"]
        self.images_dir = _first_existing(base, image_names, f"the pictures of split {split!r}", "picture-missing")
        self.labels_dir = base / labels_dir if labels_dir else json_path.with_suffix("")
        if not self.labels_dir.is_dir():
            raise DataError(
                f"{self.labels_dir}: no such folder of panoptic PNGs (for {json_path})", kind="label-missing"
            )
        self.index = read(json_path)

    def picture_name(self, index: int) -> str:
        return os.path.join(self.images_dir, self.index.file_names[index])

    def label_name(self, index: int) -> str:
        return os.path.join(self.labels_dir, self.index.label_names[index])

    def read(self, name: str) -> bytes:
        return retry_read(pathlib.Path(name).read_bytes)


def _first_existing(base: pathlib.Path, names: Sequence[str | os.PathLike[str]], what: str, kind: str) -> pathlib.Path:
    for name in names:
        if (base / name).exists():
            return base / name
    raise DataError(f"{base}: cannot find {what}; looked for {', '.join(os.fspath(name) for name in names)}", kind=kind)
