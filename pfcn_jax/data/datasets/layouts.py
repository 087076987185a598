"""Images and label files found by their names, with label values in their owner's own coding: the common part.

A subclass lists the files and says what a value means; this file reads, checks and turns values into segments.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import os
import pathlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8
from PIL import Image

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.data.decode import decode_image
from pfcn_jax.data.example import DataError, Example, ExampleInfo, check_index, sides
from pfcn_jax.data.segments import find_runs
from pfcn_jax.utils.retry import retry_read

VOID_CLASS = -1  # a value that its owner ignores
UNKNOWN_CLASS = -2  # a value that must not occur
_READERS = 16  # threads that read the headers of label files


@dataclasses.dataclass(frozen=True)
class Entry:
    """The files of one example."""

    image_id: int | str
    image: pathlib.Path
    labels: tuple[pathlib.Path, ...]


class LabelledFolder:
    """A `Source` of listed files. Subclasses implement `read_values` and `classify`."""

    def __init__(self, classes: ClassTable, entries: Sequence[Entry], *, root: pathlib.Path):
        """Reads the size of every image from the header of its first label file.

        Raises:
          DataError: no entry, or an entry of which neither labels nor image show a size.
        """
        if not entries:
            raise DataError(f"{root}: no images found", kind="picture-missing")
        self._classes, self._entries, self._root = classes, tuple(entries), root
        self._is_thing = np.array(classes.is_thing, bool)
        with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
            self._sizes = np.array(list(readers.map(_size_of, self._entries)), np.int32)

    def read_values(self, labels: Sequence[bytes], names: Sequence[str]) -> Int[np.ndarray, "h w"]:
        """The label files of one example -> one value a pixel."""
        raise NotImplementedError

    def classify(self, values: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Class ids of values (`VOID_CLASS` and `UNKNOWN_CLASS` included), and which are crowds."""
        raise NotImplementedError

    @property
    def classes(self) -> ClassTable:
        return self._classes

    def __len__(self) -> int:
        return len(self._entries)

    def sizes(self) -> Int32[np.ndarray, "examples 2"]:
        return self._sizes

    def info(self, index: int) -> ExampleInfo:
        check_index(index, len(self))
        entry = self._entries[index]
        height, width = self._sizes[index].tolist()
        return ExampleInfo(entry.image_id, entry.image.relative_to(self._root).as_posix(), (height, width))

    def __getitem__(self, index: int) -> Example:
        info = self.info(index)
        entry = self._entries[index]
        image = decode_image(_read(entry.image, "picture"), str(entry.image))
        names = [str(path) for path in entry.labels]
        values = self.read_values([_read(path, "label") for path in entry.labels], names)
        if image.shape[:2] != values.shape:
            raise DataError(
                f"{entry.image}: is {sides(image.shape)} but its labels {names[0]} are {sides(values.shape)}",
                kind="label-size",
            )
        return self._example(image, values, info, names[0])

    def _example(
        self, image: UInt8[np.ndarray, "h w 3"], values: Int[np.ndarray, "h w"], info: ExampleInfo, label_name: str
    ) -> Example:
        """Every value of a thing class becomes a segment, all values of one stuff class together another."""
        runs = find_runs(values)
        present, inverse = np.unique(runs.value, return_inverse=True)
        class_id, is_crowd = self.classify(present)
        unknown = present[class_id == UNKNOWN_CLASS]
        if unknown.size:
            raise DataError(
                f"{label_name}: unknown label values {', '.join(map(str, unknown[:5].tolist()))}", kind="label-value"
            )
        labelled = class_id != VOID_CLASS
        thing = labelled & self._is_thing[class_id]
        # Values are >= 0, so the negative keys of stuff are their own.
        key = np.where(thing, present, -1 - class_id)[labelled]
        _, first, row = np.unique(key, return_index=True, return_inverse=True)
        row_of_value = np.zeros(present.size, np.int32)
        row_of_value[labelled] = row + 1
        rows = dataclasses.replace(runs, value=row_of_value[inverse])
        chosen = np.flatnonzero(labelled)[first]
        return Example(
            image=image,
            runs=rows,
            class_id=class_id[chosen].astype(np.int32),
            is_crowd=is_crowd[chosen],
            image_id=info.image_id,
            file_name=info.file_name,
        )


def require_folder(path: pathlib.Path, what: str) -> pathlib.Path:
    """The path, if it is a folder.

    Raises:
      DataError: it is not; the message says which part of the layout it is and what lies beside it.
    """
    if path.is_dir():
        return path
    beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    there = f"beside it: {', '.join(beside[:8])}" if beside else f"{path.parent} is no folder or empty"
    raise DataError(f"{path}: no such folder of {what} ({there})")


def list_folders(root: str, pattern: str) -> list[str]:
    """The parts that `*` of the pattern stands for, one for each matching folder below `root`."""
    position = pattern.split("/").index("*") - len(pattern.split("/"))
    return [path.parts[position] for path in pathlib.Path(root).glob(pattern) if path.is_dir()]


def pair_up(images: Iterable[pathlib.Path], labels: Sequence[tuple[pathlib.Path, str]]) -> list[Entry]:
    """Entries of images with the labels of the same stem, in name order; the id is the stem.

    Args:
      labels: for each label file of an example its folder and what replaces the image's suffix.
    """
    return [
        Entry(path.stem, path, tuple(folder / f"{path.stem}{suffix}" for folder, suffix in labels))
        for path in sorted(images)
    ]


def lookup(values: Int[np.ndarray, " n"], table: Int[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
    """`table[values]`, and `UNKNOWN_CLASS` beyond its end."""
    inside = (values >= 0) & (values < len(table))
    return np.where(inside, table[np.where(inside, values, 0)], UNKNOWN_CLASS)


def _read(path: pathlib.Path, what: str) -> bytes:
    try:
        return retry_read(path.read_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", kind=f"{what}-missing") from error


def _size_of(entry: Entry) -> tuple[int, int]:
    """(height, width), from the first label file's PNG header, else from the image."""
    try:
        with open(entry.labels[0], "rb") as file:
            head = file.read(24)
        if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) == 24:
            width, height = struct.unpack(">II", head[16:24])
            return height, width
    except OSError:
        pass  # reported when the example is read
    try:
        with Image.open(io.BytesIO(entry.image.read_bytes())) as image:
            return image.height, image.width
    except OSError as error:
        raise DataError(f"{os.fspath(entry.image)}: broken image ({error})", kind="picture-unreadable") from error
