"""Image files by the paths that an annotation tool wrote: the longest common end of both paths wins."""

from __future__ import annotations

import copy
import pathlib
import re
from collections.abc import Callable, Collection, Sequence

from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import compose, is_image


class ImageIndex:
    """The images below a folder."""

    def __init__(self, folder: pathlib.Path, files: Sequence[pathlib.Path] | None = None):
        """Lists the folder and all below it, or takes `files` of it.

        Raises:
          DataError: no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of images")
        self.folder = folder
        listed = folder.rglob("*") if files is None else files
        self.files = sorted(path for path in listed if is_image(path) and path.is_file())
        self._prefix = ""
        self._tables: dict[Callable[[str], str], dict[str, list[pathlib.Path]]] = {}

    def prefer(self, folder: str) -> ImageIndex:
        """The same images, where of several with one name the one in such a folder is meant."""
        other = copy.copy(self)
        other._prefix = f"{folder}/"
        return other

    def find(self, written: str) -> pathlib.Path | None:
        """The image of a path that the tool wrote, with slashes or backslashes; None if there is none.

        Raises:
          DataError: several images fit equally well.
        """
        return self.find_by(self._prefix + written, compose)

    def find_by(self, written: str, key: Callable[[str], str]) -> pathlib.Path | None:
        """The image whose name has the same `key`, and whose folders have the longest common end with those written.

        Raises:
          DataError: several images fit equally well.
        """
        if key not in self._tables:
            table: dict[str, list[pathlib.Path]] = {}
            for path in self.files:
                table.setdefault(key(path.name), []).append(path)
            self._tables[key] = table
        parts = split_path(written)
        found = self._tables[key].get(key(parts[-1]), []) if parts else []
        common = [_count_common(path, parts[:-1]) for path in found]
        best = [path for path, count in zip(found, common) if count == max(common)]
        if len(best) > 1:
            raise DataError(
                f"{written}: may be {best[0]} or {best[1]}; name a folder with one of them (--images)",
                kind="picture-repeated",
            )
        return best[0] if best else None

    def require_all(self, written: Sequence[str], label_file: pathlib.Path) -> list[pathlib.Path]:
        """The images of written paths, in their order.

        Raises:
          DataError: an image is missing, or two paths lead to one image.
        """
        found = [self.find(path) for path in written]
        missing = [path for path, file in zip(written, found) if file is None]
        if missing:
            raise DataError(
                f"{label_file}: {len(missing)} of {len(written)} images are not below {self.folder}, as "
                f"{missing[0]:.200}; if the export has no images: --images FOLDER",
                kind="picture-missing",
            )
        files = [file for file in found if file is not None]
        owners: dict[pathlib.Path, str] = {}
        for path, file in zip(written, files):
            if file in owners:
                raise DataError(
                    f"{label_file}: {owners[file]} and {path} lead to one image, {file}; remove one of them",
                    kind="image-repeated",
                )
            owners[file] = path
        return files

    def unlisted(self, listed: Collection[pathlib.Path], reason: str) -> dict[str, list[str]]:
        """The reason with the images that are not listed."""
        known = set(listed)
        return {reason: [str(path) for path in self.files if path not in known]}


class StemIndex(ImageIndex):
    """Images by the paths of their labels: the names agree but for the suffix."""

    def find(self, written: str) -> pathlib.Path | None:
        return self.find_by(written, stem_of)


def split_path(written: str) -> tuple[str, ...]:
    """The parts of a path with slashes or backslashes, accents composed, without `.`, `..` and root."""
    parts = compose(written).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def simplify(name: str) -> str:
    """A file name as upload forms store it: spaces become `_`; all but letters, digits, `_`, `-` and `.` is dropped."""
    return re.sub(r"[^-\w.]", "", compose(name).strip().replace(" ", "_"))


def stem_of(name: str) -> str:
    """A file name without its suffix."""
    return pathlib.PurePath(compose(name)).stem


def _count_common(path: pathlib.Path, folders: Sequence[str]) -> int:
    """The number of folders, from the last on, in which a path and a written path agree."""
    own = [compose(part) for part in path.parts[:-1]]
    count = 0
    while count < min(len(own), len(folders)) and own[-1 - count] == folders[-1 - count]:
        count += 1
    return count
