"""COCO's zip files as they are downloaded, read in place: nothing is unpacked to disk.

<root>/<split>.zip                                images, as <split>/*.jpg
<root>/panoptic_annotations_*.zip                 annotations/panoptic_<split>.json and, as a zip inside,
                                                  annotations/panoptic_<split>.zip with panoptic_<split>/*.png
"""

from __future__ import annotations

import io
import os
import pathlib
import zipfile
import zlib

from pfcn_jax.data.datasets.coco import PanopticFiles
from pfcn_jax.data.example import DataError
from pfcn_jax.data.panoptic_json import parse_panoptic

_DAMAGED = (zipfile.BadZipFile, zlib.error)  # in the directory of a zip, and in a member


class CocoZips(PanopticFiles):
    """A split inside COCO's zip files. Meant to be read once, in order, by one process (preparing other formats)."""

    def __init__(self, root: str | os.PathLike[str], split: str):
        """Opens the zips; the zip of panoptic PNGs is held in memory (COCO train: 800 MB).

        Raises:
          DataError: a zip or the JSON in it is missing or broken.
        """
        base = pathlib.Path(root)
        self.split = split
        self.images = _open_zip(base / f"{split}.zip")
        candidates = sorted(base.glob("panoptic_annotations*.zip"))
        if not candidates:
            raise DataError(
                f"{base}: no panoptic_annotations*.zip (found {', '.join(sorted(p.name for p in base.glob('*.zip')))})"
            )
        inner = f"annotations/panoptic_{split}"
        for candidate in candidates:
            with _open_zip(candidate) as annotations:
                if f"{inner}.json" not in annotations.namelist():
                    continue
                if f"{inner}.zip" not in annotations.namelist():
                    raise DataError(f"{candidate}: has {inner}.json but no {inner}.zip")
                try:
                    content, labels = (annotations.read(f"{inner}.{kind}") for kind in ("json", "zip"))
                    self.labels = zipfile.ZipFile(io.BytesIO(labels))
                except _DAMAGED as error:
                    raise DataError(f"{candidate}: broken zip ({error}); download it again") from error
                self.index, _ = parse_panoptic(content, f"{candidate}:{inner}.json")
                return
        raise DataError(f"{base}: no {inner}.json in {', '.join(candidate.name for candidate in candidates)}")

    def image_name(self, index: int) -> str:
        return f"{self.split}/{self.index.file_names[index]}"

    def label_name(self, index: int) -> str:
        return f"panoptic_{self.split}/{self.index.label_names[index]}"

    def read(self, name: str) -> bytes:
        archive = self.labels if name.startswith("panoptic_") else self.images
        try:
            return archive.read(name)
        except _DAMAGED as error:
            raise OSError(str(error)) from error


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: broken zip ({error})") from error
