"""Files below a folder or a URI (gs://, s3://, hdfs://, file://, what fsspec knows): list, read, write whole."""

from __future__ import annotations

import contextlib
import pathlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from pfcn_jax.data.example import DataError

_NATIVE = ("file", "s3", "gs", "gcs", "hdfs", "abfs", "abfss")  # schemes that pyarrow opens itself
_PUT_IS_ATOMIC = ("s3", "gcs", "abfs")  # an object is seen when its upload is complete, never before
_PIECE = 8 * 2**20


class Store:
    """Names are relative, with `/`. Every file appears complete under its name or not at all.

    Object stores promise that themselves; elsewhere a file is written below `scratch` and renamed.

    Raises:
      DataError: a scheme that nothing installed can open, or a location that cannot be reached.
    """

    def __init__(self, where: str, *, scratch: str = "state/tmp"):
        self.where = _shown(where)
        self._files, self._base = _open(where)
        self._scratch = scratch
        self._made: set[str] = set()  # folders that are there

    def list(self, below: str = "", *, skip: str = "") -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file at any depth, folder by folder; nothing if `below` does not exist.

        Args:
          skip: the full path of a folder that is left out (`path` of another store).
        """
        folders = [self.path(below)]
        while folders:
            selector = pafs.FileSelector(folders.pop(), allow_not_found=True)
            for info in self._files.get_file_info(selector):
                if info.type == pafs.FileType.Directory:
                    if info.path.rstrip("/") != skip:
                        folders.append(info.path)
                elif info.type == pafs.FileType.File:
                    yield info.path[len(self._base) :].lstrip("/"), info.size

    def path(self, name: str = "") -> str:
        """The path in the file system."""
        return f"{self._base}/{name}".rstrip("/")

    def same_files(self, other: Store) -> bool:
        """True if both lie on one file system, so that their paths can be compared."""
        return bool(self._files.equals(other._files))

    def exists(self, name: str = "") -> bool:
        return self._files.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError if there is none."""
        with self._files.open_input_stream(self.path(name), compression=None) as stream:
            return stream.read()

    def put(self, name: str, data: bytes) -> None:
        """Writes a file in one piece, over what was there."""
        self._write(name, lambda stream: stream.write(data))

    def put_file(self, name: str, local: pathlib.Path) -> None:
        """Writes a local file of any size, over what was there."""

        def copy(stream: Any) -> None:
            with local.open("rb") as file:
                while piece := file.read(_PIECE):
                    stream.write(piece)

        self._write(name, copy)

    def remove(self, name: str) -> None:
        """Deletes a file, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self.path(name))

    def remove_folder(self, name: str) -> None:
        """Deletes a folder with everything in it, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self.path(name))
        self._made.clear()

    def _write(self, name: str, fill: Any) -> None:
        target = self.path(name)
        if self._files.type_name in _PUT_IS_ATOMIC:
            with self._files.open_output_stream(target, compression=None) as stream:
                fill(stream)
            return
        partial = self.path(f"{self._scratch}/{uuid.uuid4().hex}")
        self._make_folder(partial)
        self._make_folder(target)
        try:
            with self._files.open_output_stream(partial, compression=None) as stream:
                fill(stream)
            self._files.move(partial, target)
        except BaseException:
            if self._files.get_file_info(partial).type == pafs.FileType.File:
                self._files.delete_file(partial)
            raise

    def _make_folder(self, path: str) -> None:
        folder = path.rsplit("/", 1)[0]
        if folder not in self._made:
            self._files.create_dir(folder, recursive=True)
            self._made.add(folder)


def _open(where: str) -> tuple[Any, str]:
    """The file system, and the path on it without a slash at the end."""
    scheme = where.partition("://")[0] if "://" in where else ""
    try:
        if not scheme:
            return pafs.LocalFileSystem(), str(pathlib.Path(where).absolute())
        if scheme in _NATIVE:
            files, path = pafs.FileSystem.from_uri(where)
        else:
            import fsspec

            inner, path = fsspec.core.url_to_fs(where)
            files = pafs.PyFileSystem(pafs.FSSpecHandler(inner))
    except (OSError, ImportError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{_shown(where)}: cannot be opened ({error})") from error
    return files, path.rstrip("/")


def _shown(where: str) -> str:
    """A URI without options, and without a key and its secret; a folder as it is."""
    return re.sub(r"(?<=://)[^/@]*@|\?.*", "", where) if "://" in where else where
