"""COCO panoptic as TensorFlow Datasets keeps it, without TensorFlow: preparing it, and reading it as a `Source`.

`prepare` writes ArrayRecord files with the features of TFDS's own `coco/2017_panoptic`, from a COCO-panoptic folder or
from COCO's zip files in place; `TfdsSource` reads them, and also a directory that TFDS's own builder prepared as
ArrayRecord. Images are stored and handed on as the bytes of their files. Directories may be remote: `gs://` goes
through ArrayRecord's own reader and, for the small files, fsspec (which needs `gcsfs`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int32
from PIL import Image

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.datasets.coco import PanopticFiles, make_example
from pfcn_jax.data.decode import decode_ids, decode_image
from pfcn_jax.data.example import DataError, Example, ExampleInfo, check_index
from pfcn_jax.data.options import DataOptions
from pfcn_jax.data.registry import register
from pfcn_jax.utils.atomic import write_text

NAME, CONFIG, VERSION = "coco", "2017_panoptic", "1.1.0"  # of TFDS's own builder
INDEX_FILE = "panoptic_index.json"  # ours, beside the records: classes, ids, names and sizes
DECODERS = {"image": tfds.decode.SkipDecoding(), "panoptic_image": tfds.decode.SkipDecoding()}

# COCO's category ids in contiguous order: the records hold names only.
_MISSING_THING_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_STUFF_IDS = (
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151, 154),
    *(155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, *range(184, 201)),
)
COCO_THING_IDS = tuple(i for i in range(1, 91) if i not in _MISSING_THING_IDS)
COCO_CATEGORY_IDS = COCO_THING_IDS + _COCO_STUFF_IDS


class PanopticBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's `coco/2017_panoptic` with the same name and features, for any COCO-panoptic data."""

    name = NAME
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=CONFIG, description="COCO-panoptic annotations")]  # noqa: RUF012

    def __init__(self, *, parts: Mapping[str, PanopticFiles], name: str, **kwargs: Any):
        self.name, self.parts = name, parts
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        classes = next(iter(self.parts.values())).index.classes
        objects = {
            "id": np.int64,
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=list(classes.names)),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "panoptic_image": tfds.features.Image(encoding_format="png"),
            "panoptic_image/filename": tfds.features.Text(),
            "panoptic_objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images with panoptic segmentation in the COCO format.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # everything is on this machine
        return {split: self._generate_examples(files) for split, files in self.parts.items()}

    def _generate_examples(self, files: PanopticFiles):
        for position in range(len(files)):
            info = files.info(position)
            if not isinstance(info.image_id, int):
                raise DataError(f"{files.image_name(position)}: TFDS wants whole numbers as ids, not {info.image_id!r}")
            image, labels = files.read_files(position)
            example = files.decode(position, image, labels)  # so that only sound examples are written
            yield (
                info.file_name,
                {
                    "image": io.BytesIO(image),
                    "image/filename": info.file_name,
                    "image/id": info.image_id,
                    "panoptic_image": io.BytesIO(labels),
                    "panoptic_image/filename": files.index.label_names[position],
                    "panoptic_objects": _objects(example, files.index.segments(position)[0].tolist()),
                },
            )


def _objects(example: Example, segment_ids: list[int]) -> list[dict[str, Any]]:
    """`panoptic_objects` of an example; areas and boxes are measured."""
    height, width = example.size
    scaled = example.box / np.array([[width, height, width, height]])
    return [
        {
            "id": segment_id,
            "area": int(example.area[row]),
            "bbox": tfds.features.BBox(
                xmin=float(scaled[row, 0]),
                ymin=float(scaled[row, 1]),
                xmax=float(scaled[row, 2]),
                ymax=float(scaled[row, 3]),
            ),
            "label": int(example.class_id[row]),
            "is_crowd": bool(example.is_crowd[row]),
        }
        for row, segment_id in enumerate(segment_ids)
    ]


def prepare(
    data_dir: str | os.PathLike[str],
    parts: Mapping[str, PanopticFiles],
    *,
    name: str = NAME,
) -> epath.Path:
    """Writes COCO-panoptic data as TFDS keeps them; what is there already is kept.

    Args:
      data_dir: TFDS's data directory; the files go to `<data_dir>/<name>/2017_panoptic/1.1.0`.
      parts: TFDS's name of each split (`train`, `validation`) and its files (`CocoFolder` or `CocoZips`); all of one
        class table.
      name: the dataset's name.

    Returns:
      The prepared directory, a root for `TfdsSource`.

    Raises:
      DataError: the parts have different classes, an example is broken, or the directory holds other data already.
    """
    classes = require_one_table(parts)
    builder = PanopticBuilder(
        parts=parts,
        name=name,
        config=CONFIG,
        data_dir=os.fspath(data_dir),
        file_format=tfds.core.FileFormat.ARRAY_RECORD,
    )
    builder.download_and_prepare()
    root = epath.Path(builder.data_path)
    _check_prepared(root, parts)
    _write_index(root, classes, {split: _scan(root, split) for split in parts})
    return root


def require_one_table(parts: Mapping[str, PanopticFiles]) -> ClassTable:
    """The class table of all parts.

    Raises:
      DataError: they have different ones, or there is no part.
    """
    tables = {files.classes for files in parts.values()}
    if len(tables) != 1:
        raise DataError(f"the parts {', '.join(parts)} do not have one class table in common")
    return tables.pop()


def _check_prepared(root: epath.Path, parts: Mapping[str, PanopticFiles]) -> None:
    """TFDS keeps what an earlier run has prepared; its labels are numbers, which other classes would rename."""
    info = tfds.builder_from_directory(os.fspath(root)).info
    there, label = info.splits, info.features["panoptic_objects"].feature["label"]
    for split, files in parts.items():
        found = there[split].num_examples if split in there else 0
        if found != len(files) or tuple(label.names) != files.classes.names:
            raise DataError(
                f"{root}: holds other data already ({found} images in {split}, expected "
                f"{len(files)}, or other classes); delete it, or choose another --output"
            )


def _write_index(root: epath.Path, classes: ClassTable, splits: Mapping[str, Any]) -> None:
    """Writes the index beside the records, whole or not at all."""
    write_text(root / INDEX_FILE, json.dumps({"classes": classes.to_json(), "splits": splits}))


def _scan(root: epath.Path, split: str) -> dict[str, Any]:
    """Id, name and size of every record, and the records' numbers in ascending order of image ids."""
    records = _open_records(root, split)
    ids, names, sizes = [], [], []
    for number in range(len(records)):
        record = records[number]
        ids.append(int(record["image/id"]))
        names.append(_text(record["image/filename"]))
        with Image.open(io.BytesIO(record["image"])) as image:  # reads the header only
            sizes.append([image.height, image.width])
    order = np.argsort(np.array(ids), kind="stable").tolist()
    return {
        "record": order,
        "image_id": [ids[i] for i in order],
        "file_name": [names[i] for i in order],
        "size": [sizes[i] for i in order],
    }


def _open_records(root: epath.Path, split: str) -> Any:
    if not (root / "dataset_info.json").is_file():
        raise DataError(f"{root}: not a directory prepared by TFDS (no dataset_info.json)")
    builder = tfds.builder_from_directory(os.fspath(root))
    if split not in builder.info.splits:
        raise DataError(f"{root}: no split {split!r}; it has {', '.join(builder.info.splits)}")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"{root}: prepared as {builder.info.file_format}; random access needs array_record "
            "(tfds build --file_format=array_record)"
        )
    missing = {"image", "image/id", "panoptic_image", "panoptic_objects"} - set(builder.info.features)
    if missing:
        raise DataError(f"{root}: no feature {', '.join(sorted(missing))}; is it a panoptic configuration?")
    return builder.as_data_source(split=split, decoders=DECODERS)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def list_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits of a prepared directory (or of COCO's in a data directory); none if it is not one."""
    base = _prepared(root, NAME)
    if not (base / "dataset_info.json").is_file():
        return []
    return list(tfds.builder_from_directory(os.fspath(base)).info.splits)


def _prepared(root: str | os.PathLike[str], dataset: str) -> epath.Path:
    base = epath.Path(root)
    return base if (base / "dataset_info.json").is_file() else base / dataset / CONFIG / VERSION


class TfdsSource:
    """Panoptic data prepared by TFDS as ArrayRecord, as a `Source`; examples are in ascending order of image ids."""

    def __init__(self, root: str | os.PathLike[str], split: str, *, dataset: str = NAME):
        """Opens it. Directories that TFDS's own builder prepared are scanned once (minutes for COCO's train split).

        Args:
          root: the prepared directory (with `dataset_info.json`), or the data directory that holds
            `<dataset>/2017_panoptic/<version>`.
          split: TFDS's name of the split: `train`, `validation`.

        Raises:
          DataError: no prepared directory, no such split, or other features or classes than COCO-panoptic ones.
        """
        self.root = _prepared(root, dataset)
        self.split = split
        self._records = _open_records(self.root, split)
        index = self._read_index()
        if len(index["record"]) != len(self._records):
            listed, there = len(index["record"]), len(self._records)
            raise DataError(f"{self.root / INDEX_FILE}: lists {listed} examples, the records are {there}; delete it")
        self._record = np.array(index["record"], np.int64)
        self._image_ids, self._file_names = tuple(index["image_id"]), tuple(index["file_name"])
        self._sizes = np.array(index["size"], np.int32).reshape(-1, 2)

    def _read_index(self) -> dict[str, Any]:
        """This split's part of the index; sets the class table. Without an index the records are scanned and, where
        the directory can be written, one is left for the next time."""
        path = self.root / INDEX_FILE
        splits: dict[str, Any] = {}
        if path.is_file():
            content = json.loads(path.read_text())
            self._classes, splits = ClassTable.from_json(content["classes"]), content["splits"]
        else:
            builder = tfds.builder_from_directory(os.fspath(self.root))
            self._classes = coco_class_table(builder.info.features["panoptic_objects"].feature["label"].names)
        if self.split not in splits:
            splits[self.split] = _scan(self.root, self.split)
            with contextlib.suppress(OSError):
                _write_index(self.root, self._classes, splits)
        return splits[self.split]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._records = _open_records(self.root, self.split)

    @property
    def classes(self) -> ClassTable:
        return self._classes

    def __len__(self) -> int:
        return len(self._record)

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self._sizes

    def info(self, index: int) -> ExampleInfo:
        check_index(index, len(self))
        height, width = self._sizes[index].tolist()
        return ExampleInfo(self._image_ids[index], self._file_names[index], (height, width))

    def __getitem__(self, index: int) -> Example:
        info = self.info(index)
        where = f"{self.root} ({self.split}): {info.file_name} (image {info.image_id})"
        try:
            record = self._records[int(self._record[index])]
        except Exception as error:  # the reader and the parser of examples have errors of many kinds
            raise DataError(f"{where}: its record cannot be read ({error})", kind="picture-unreadable") from error
        objects = record["panoptic_objects"]
        segments = (
            np.array(objects["id"], np.int32).reshape(-1),
            np.array(objects["label"], np.int32).reshape(-1),
            np.array(objects["is_crowd"], bool).reshape(-1),
        )
        image = decode_image(record["image"], where)
        ids = decode_ids(record["panoptic_image"], f"labels of {where}")
        return make_example(image, ids, segments, info, image_name=where, label_name=f"labels of {where}")


def coco_class_table(names: list[str]) -> ClassTable:
    """The table of COCO's 133 classes from their names in TFDS's order, which is ours: things, then stuff, by id.

    Raises:
      DataError: these are not COCO's classes.
    """
    if len(names) != len(COCO_CATEGORY_IDS) or (names[0], names[-1]) != ("person", "rug-merged"):
        raise DataError(
            f"{len(names)} classes from {names[0]!r} to {names[-1]!r} are not COCO's, and no {INDEX_FILE} tells "
            "things from stuff: prepare the data with this package"
        )
    is_thing = tuple(i < len(COCO_THING_IDS) for i in range(len(names)))
    return ClassTable(names=tuple(names), category_ids=COCO_CATEGORY_IDS, is_thing=is_thing)


@register("tfds", splits=list_splits)
def open_tfds(options: DataOptions, split: str) -> TfdsSource:
    return TfdsSource(options.root, split)
