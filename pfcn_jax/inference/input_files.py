"""The inputs of `predict`: files, folders, globs and videos become a list; images are decoded ahead of their turn."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import glob
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from pfcn_jax.data.decode import decode_image
from pfcn_jax.data.example import DataError
from pfcn_jax.data.image_files import SUFFIXES, describe_left_out, is_hidden
from pfcn_jax.errors import UserError, with_code
from pfcn_jax.utils.stderr import print_lines

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
Entry = TypeVar("Entry")
_READERS, _AHEAD = 2, 8  # threads, and images that wait decoded


@dataclasses.dataclass(frozen=True)
class Input:
    """One file to segment."""

    path: pathlib.Path
    name: str  # of its outputs: relative to the folder it was found in, without suffix, unique

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def image_id(self) -> str:
        return self.name + self.path.suffix


def find_inputs(words: Sequence[str], *, exclude: pathlib.Path | None = None) -> list[Input]:
    """Files as given; images and videos anywhere below folders, in name order; what globs match (`**`: any depth).

    A file that was found twice is taken once. Equal names get a number. Folders are searched without hidden files and
    without `exclude`, where the output of an earlier call may lie; images of formats that are not decoded are counted
    on stderr.

    Raises:
      UserError: a path that does not exist, a folder inside `exclude`, or nothing found at all.
    """
    found: dict[pathlib.Path, pathlib.PurePath] = {}  # file -> its name relative to where it was found
    for word in words:
        for path, relative in _expand(word, exclude.resolve() if exclude else None):
            found.setdefault(path, relative)
    if not found:
        looked_for = ", ".join(SUFFIXES + VIDEO_SUFFIXES)
        raise UserError(f"nothing to segment in {', '.join(words)} (looked for {looked_for})")
    names = output_names([relative.as_posix() for relative in found.values()])
    return [Input(path, name) for path, name in zip(found, names)]


def _expand(word: str, exclude: pathlib.Path | None) -> Iterator[tuple[pathlib.Path, pathlib.PurePath]]:
    path = pathlib.Path(word)
    if path.is_dir():
        yield from _below(path, exclude)
    elif path.is_file():
        yield path, pathlib.PurePath(path.name)
    elif glob.has_magic(word):
        matched = [pathlib.Path(match) for match in sorted(glob.glob(word, recursive=True))]
        if not matched:
            raise UserError(f"{word}: matches no file or folder")
        for match in matched:
            if match.is_dir() and "**" not in word:
                yield from _below(match, exclude)
            elif _is_wanted(match, exclude):
                yield match, pathlib.PurePath(match.name)
    else:
        raise UserError(f"{word}: no such file or folder")


def _below(folder: pathlib.Path, exclude: pathlib.Path | None) -> Iterator[tuple[pathlib.Path, pathlib.PurePath]]:
    if exclude is not None and exclude in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"{folder}: lies in the folder of the output, {exclude}; choose another --output")
    files = sorted(folder.rglob("*"))
    for path in files:
        if not _is_hidden_below(path, folder) and _is_wanted(path, exclude):
            yield path, path.relative_to(folder)
    if left_out := describe_left_out(path for path in files if not _is_hidden_below(path, folder)):
        print_lines(f"{folder}: {left_out}")


def _is_hidden_below(path: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(is_hidden(pathlib.Path(part)) for part in path.relative_to(folder).parts)


def _is_wanted(path: pathlib.Path, exclude: pathlib.Path | None) -> bool:
    if path.suffix.lower() not in SUFFIXES + VIDEO_SUFFIXES or not path.is_file():
        return False
    return exclude is None or exclude not in path.resolve().parents


def output_names(paths: Iterable[str]) -> Iterator[str]:
    """For each relative path a name without suffix; one that is taken gets a number."""
    used: set[str] = set()
    for path in paths:
        stem = str(pathlib.PurePosixPath(path).with_suffix(""))
        name, count = stem, 1
        while name in used:
            count += 1
            name = f"{stem}_{count}"
        used.add(name)
        yield name


def read_ahead(inputs: Sequence[Input], broken: list[str], *, upright: bool) -> Iterator[tuple[Input, np.ndarray]]:
    """The images in order, decoded by threads before they are asked for; what cannot be read goes to `broken`."""

    def read(entry: Input) -> np.ndarray | str:
        try:
            return decode_image(entry.path.read_bytes(), str(entry.path), upright=upright)
        except DataError as error:
            return with_code(error)
        except OSError as error:
            return f"{entry.path}: {error.strerror or error}"

    for entry, image in decode_ahead(inputs, read, threads=_READERS):
        if isinstance(image, str):
            broken.append(image)
        else:
            yield entry, image


def decode_ahead(
    entries: Iterable[Entry], read: Callable[[Entry], np.ndarray | str], *, threads: int
) -> Iterator[tuple[Entry, np.ndarray | str]]:
    """`read` of each entry, in order, done by threads before it is asked for: an image, or what is wrong with it."""
    waiting: collections.deque[tuple[Entry, concurrent.futures.Future[np.ndarray | str]]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for entry in entries:
            waiting.append((entry, pool.submit(read, entry)))
            if len(waiting) >= _AHEAD:
                entry, future = waiting.popleft()
                yield entry, future.result()
        for entry, future in waiting:
            yield entry, future.result()
