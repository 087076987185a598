"""A folder in the COCO-panoptic layout, with any categories.

    <root>/<split>/*.jpg                              images
    <root>/annotations/panoptic_<split>.json          categories, images, annotations with segments_info
    <root>/annotations/panoptic_<split>/*.png         segment ids, R + 256 G + 65536 B, 0 = void

The instance masks are those of the panoptic PNG, without overlaps (training on COCO's overlapping polygons, as the
original implementation can, is not offered).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from pfcn_jax.codec import exchange_red_blue
from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_ids, decode_image
from pfcn_jax.data.example import DataError, Example, ExampleInfo, check_index, sides
from pfcn_jax.data.image_files import find_normalized
from pfcn_jax.data.kinds import Report, raise_errors
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.panoptic_json import VOID_ID, Declared, PanopticIndex, read_panoptic
from pfcn_jax.data.registry import register
from pfcn_jax.data.segments import Runs, count_pixels, find_runs
from pfcn_jax.utils.retry import retry_read


def make_example(
    image: UInt8[np.ndarray, "h w 3"],
    ids: Int32[np.ndarray, "H W"],
    segments: tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"], Bool[np.ndarray, " n"]],
    info: ExampleInfo,
    *,
    image_name: str,
    label_name: str,
) -> Example:
    """An image, its ids as painted and its segments as listed -> an Example (row i is the i-th listed segment).

    Args:
      segments: segment ids, class ids and crowd flags.
      image_name: for the messages.
      label_name: likewise.

    Raises:
      DataError: sizes that differ, painted ids that are not listed, or listed ids that are not painted.
    """
    segment_id, class_id, is_crowd = segments
    if image.shape[:2] != info.size:
        hint = _size_hint(image, info.size)
        raise DataError(
            f"{image_name}: is {sides(image.shape)} but the JSON says {sides(info.size)}{hint}", kind="picture-size"
        )
    if image.shape[:2] != ids.shape:
        raise DataError(
            f"{image_name}: is {sides(image.shape)} but its labels {label_name} are {sides(ids.shape)}",
            kind="label-size",
        )
    return Example(
        image=image,
        runs=rows_of_ids(ids, segment_id, label_name),
        class_id=class_id,
        is_crowd=is_crowd,
        image_id=info.image_id,
        file_name=info.file_name,
    )


def rows_of_ids(ids: Int[np.ndarray, "h w"], segment_id: Int[np.ndarray, " n"], label_name: str) -> Runs:
    """The runs of a panoptic PNG, with each id replaced by 1 + its place in `segment_id`; 0 is void.

    Args:
      segment_id: the ids that the JSON lists, each once.
      label_name: of the PNG, for messages.

    Raises:
      DataError: painted ids that are not listed, or listed ids that are not painted.
    """
    runs = find_runs(ids)
    order = np.argsort(segment_id)
    known = np.concatenate([[VOID_ID], segment_id[order]])
    row_of_known = np.concatenate([[0], order + 1]).astype(np.int32)
    position = np.minimum(np.searchsorted(known, runs.value), known.size - 1)
    strangers = known[position] != runs.value
    if strangers.any():
        listed = np.unique(runs.value[strangers])
        hint = _bgr_hint(runs.value, known)
        raise DataError(
            f"{label_name}: segment ids {_shorten(listed)} are painted but not in the JSON{hint}", kind="id-unlisted"
        )
    rows = dataclasses.replace(runs, value=row_of_known[position])
    unpainted = segment_id[count_pixels(rows, len(segment_id)) == 0]
    if unpainted.size:
        raise DataError(
            f"{label_name}: segment ids {_shorten(unpainted)} are in the JSON but have no pixels", kind="id-unpainted"
        )
    return rows


def _size_hint(image: UInt8[np.ndarray, "h w 3"], listed: tuple[int, int]) -> str:
    """The likely reason for a size that differs from the JSON's."""
    if image.shape[:2] == listed[::-1]:
        return (
            "; height and width are exchanged: either in the JSON, or the labels were drawn on the image as EXIF turns "
            "it (then: prepare --upright)"
        )
    return "; is it another image, or was it rotated or resized?"


def _bgr_hint(painted: Int[np.ndarray, " n"], known: Int[np.ndarray, " m"]) -> str:
    """Says so if exchanging R and B explains every painted id."""
    explained = np.isin(exchange_red_blue(painted), known).all()
    return "; with R and B exchanged all are: the PNG was written as BGR" if explained else ""


def _shorten(ids: Int[np.ndarray, " n"]) -> str:
    return ", ".join(str(value) for value in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


class PanopticFiles:
    """A panoptic JSON with the files that it names, wherever they lie: a `Source`. Subclasses say where."""

    index: PanopticIndex

    def image_name(self, index: int) -> str:
        """The whole name of image `index`, for `read` and for messages."""
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

    def read_image(self, index: int) -> bytes:
        """The bytes of image `index`; empty if it cannot be read."""
        try:
            return self.read(self.image_name(index))
        except (OSError, KeyError, ValueError):
            return b""

    def read_files(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of the image and of the panoptic PNG.

        Raises:
          DataError: one of them cannot be read.
        """
        contents = []
        for what, name in (("picture", self.image_name(index)), ("label", self.label_name(index))):
            try:
                contents.append(self.read(name))
            except (OSError, KeyError) as error:
                reason = getattr(error, "strerror", None) or error
                hint = "; the JSON's file_name has backslashes, use /" if "\\" in name else ""
                raise DataError(
                    f"{name} (image {self.index.image_ids[index]}): cannot be read ({reason}){hint}",
                    kind=f"{what}-missing",
                ) from error
        return contents[0], contents[1]

    def decode(self, index: int, image: bytes, labels: bytes) -> Example:
        """The example of bytes that `read_files` gave, checked (see `make_example`)."""
        info = self.info(index)
        image_name = f"{self.image_name(index)} (image {info.image_id})"
        label_name = f"{self.label_name(index)} (image {info.image_id})"
        return make_example(
            decode_image(image, image_name),
            decode_ids(labels, label_name),
            self.index.segments(index),
            info,
            image_name=image_name,
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
        report: Report = raise_errors,
    ):
        """Finds and checks the folder; images and PNGs are opened when their example is read.

        Args:
          root: the data directory; the three options below are relative to it.
          split: the part, as `train2017`.
          images_dir: default: `<split>` or `images/<split>` or `images`, the first that exists.
          json_file: default: `annotations/panoptic_<split>.json` or `panoptic_<split>.json`.
          labels_dir: default: the JSON's path without `.json`.
          report: receives the faults of the JSON; if it returns, they are left out.

        Raises:
          DataError: a part is missing (the message lists where it was looked for), or the JSON is not right.
        """
        base = pathlib.Path(root)
        if not base.is_dir():
            raise DataError(f"{base}: no such data directory", kind="data-missing")
        json_names = [json_file] if json_file else [f"annotations/panoptic_{split}.json", f"panoptic_{split}.json"]
        json_path = _first_existing(base, json_names, f"the panoptic JSON of split {split!r}", "json-missing")
        image_names = [images_dir] if images_dir else [split, f"images/{split}", "images"]
        self.images_dir = _first_existing(base, image_names, f"the images of split {split!r}", "picture-missing")
        self.labels_dir = base / labels_dir if labels_dir else json_path.with_suffix("")
        if not self.labels_dir.is_dir():
            raise DataError(
                f"{self.labels_dir}: no such folder of panoptic PNGs (for {json_path})", kind="label-missing"
            )
        self.index, declared = read_panoptic(json_path, report)
        self.declared: Declared | None = None if report is raise_errors else declared  # only checks need it

    def image_name(self, index: int) -> str:
        return os.path.join(self.images_dir, self.index.file_names[index])

    def label_name(self, index: int) -> str:
        return os.path.join(self.labels_dir, self.index.label_names[index])

    def read(self, name: str) -> bytes:
        path = pathlib.Path(name)
        try:
            return retry_read(path.read_bytes)
        except FileNotFoundError:
            found = find_normalized(path)
            if found is None:
                raise
            return retry_read(found.read_bytes)


def _first_existing(base: pathlib.Path, names: Sequence[str | os.PathLike[str]], what: str, kind: str) -> pathlib.Path:
    for name in names:
        if (base / name).exists():
            return base / name
    raise DataError(f"{base}: cannot find {what}; looked for {', '.join(os.fspath(name) for name in names)}", kind=kind)


def _list_splits(root: str) -> list[str]:
    base = pathlib.Path(root)
    found = [*base.glob("annotations/panoptic_*.json"), *base.glob("panoptic_*.json")]
    if not found and (detection := _detection_file(base)):
        raise DataError(
            f"{root}: no annotations/panoptic_SPLIT.json, but {detection} looks like a COCO detection file; convert "
            f"it: python -m pfcn_jax.main prepare instances --json {base / detection} ...",
            kind="no-split",
        )
    return [path.stem.removeprefix("panoptic_") for path in found]


def _detection_file(base: pathlib.Path) -> pathlib.Path | None:
    """The first JSON in `base` or in a folder of it that has the parts of a COCO detection file."""
    for path in [*sorted(base.glob("*.json")), *sorted(base.glob("*/*.json"))]:
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if all(part in data for part in (b'"annotations"', b'"images"')) and b'"segments_info"' not in data:
                return path.relative_to(base)
    return None


@register("coco", splits=_list_splits)
def open_coco(options: DataOptions, split: str) -> CocoFolder:
    return CocoFolder(options.root, split)
