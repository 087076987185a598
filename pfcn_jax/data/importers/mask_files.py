"""Mask files: which one belongs to an image, and its values."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image

from pfcn_jax.data.decode import decode_ids, decode_values
from pfcn_jax.data.example import DataError, sides
from pfcn_jax.data.image_files import compose, is_hidden
from pfcn_jax.data.importers.files import read_file

_SUFFIXES = (".png", ".tif", ".tiff")
_ENDINGS = ("_masks", "_mask", "_labels", "_label", "_L")  # that labelling tools add to the image's name
_RGB = 2  # color type in a PNG's header
_TIFF_MODES = ("1", "L", "P", "I", "I;16", "I;16B")


class MaskFolder:
    """A folder of masks: the file of an image has its name, or its name with `_mask` or `_masks`."""

    def __init__(self, folder: pathlib.Path, ending: str = ""):
        """Lists the folder.

        Args:
          ending: of the masks' stems, where the folder has other files, too.

        Raises:
          DataError: no such folder, or two masks of one image.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of masks", kind="data-missing")
        self.folder = folder
        self._files: dict[str, pathlib.Path] = {}
        self.other: list[pathlib.Path] = []  # files of other kinds
        for path in sorted(folder.iterdir()):
            if is_hidden(path) or not path.is_file() or not path.stem.endswith(ending):
                continue
            if path.suffix.lower() not in _SUFFIXES:
                self.other.append(path)
                continue
            stem = compose(path.stem)
            if stem in self._files:
                raise DataError(f"{path} and {self._files[stem]}: two masks of one image", kind="labels-contradict")
            self._files[stem] = path

    def find(self, image: pathlib.Path) -> pathlib.Path | None:
        """The mask of an image; None if there is none.

        Raises:
          DataError: there are several.
        """
        stem = compose(image.stem)
        found = [self._files[name] for name in (stem, *(stem + end for end in _ENDINGS)) if name in self._files]
        if len(found) > 1:
            raise DataError(f"{found[0]} and {found[1]}: two masks of {image}", kind="labels-contradict")
        return found[0] if found else None

    def require(self, image: pathlib.Path) -> pathlib.Path:
        """The mask of an image.

        Raises:
          DataError: there is none.
        """
        found = self.find(image)
        if found is None:
            raise DataError(f"{self.folder}: no mask of {image} ({image.stem}.png)", kind="label-missing")
        return found

    def compare(self, images: Sequence[pathlib.Path], where: str, *, missing_is_error: bool = False) -> list[str]:
        """Lines about images without a mask and masks without an image.

        Raises:
          DataError: no mask belongs to any image, or (`missing_is_error`) an image has none.
        """
        pairs = {image: self.find(image) for image in images}
        without = [image for image, mask in pairs.items() if mask is None]
        if len(without) == len(images):
            there = ", ".join(path.name for path in [*self._files.values(), *self.other][:3]) or "nothing"
            raise DataError(
                f"{self.folder}: no mask has the name of an image in {where} (masks: {there}; images: "
                f"{images[0].name})",
                kind="label-missing",
            )
        if without and missing_is_error:
            self.require(without[0])
        lines = []
        if without:
            lines.append(
                f"warning: {len(without)} of {len(images)} images have no mask in {self.folder}, as {without[0].name}: "
                "they are written without instances of this class"
            )
        orphans = sorted(set(self._files.values()) - set(pairs.values()) - {None})
        for files, what in ((orphans, "masks belong to no image"), (self.other, "files are not PNG or TIFF")):
            if files:
                lines.append(f"warning: {len(files)} {what} and are left out, as {files[0]}")
        return lines


def read_values(path: pathlib.Path, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """One value a pixel: gray, palette indices, or RGB as ids.

    Raises:
      DataError: not readable as such, or of another size than its image (`size`).
    """
    data = read_file(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        values = _read_tiff(data, path)
    else:
        values = (decode_ids if len(data) > 25 and data[25] == _RGB else decode_values)(data, str(path))
    if values.shape != size:
        raise DataError(f"{path}: is {sides(values.shape)}, but its image is {sides(size)}", kind="label-size")
    return values


def _read_tiff(data: bytes, path: pathlib.Path) -> Int[np.ndarray, "h w"]:
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)) as image:
            if image.mode not in _TIFF_MODES:
                raise DataError(f"{path}: a TIFF of mode {image.mode}; expected one value a pixel", kind="label-format")
            return np.asarray(image).astype(np.int32)
    except DataError:
        raise
    except Exception as error:  # Pillow's TIFF reader raises errors of many kinds
        raise DataError(f"{path}: broken TIFF ({error})", kind="label-unreadable") from error
