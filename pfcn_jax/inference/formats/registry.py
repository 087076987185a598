"""The output formats by name, and what a writer of a format does."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

from pfcn_jax.data.classes import ClassTable
from pfcn_jax.errors import UserError
from pfcn_jax.inference.result import Result


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """One segmented image as the formats name it."""

    key: str  # unique among the images of a call; the order of the files follows it
    image_id: int | str
    name: str  # path of its output files below the format's folder, without an ending
    path: str  # of the image itself, as it was given


class Writer(Protocol):
    """Writes one format. Constructed with the output folder and the classes."""

    def add(self, entry: ImageEntry, result: Result) -> None:
        """Writes what belongs to one image."""

    def finish(self, order: Sequence[str]) -> None:
        """Writes what all images have in common; `order` is that of their keys."""


FORMATS: dict[str, Callable[[pathlib.Path, ClassTable], Writer]] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: `predict --format NAME` uses this writer."""

    def add(writer: type) -> type:
        FORMATS[name] = writer
        return writer

    return add


def make_writer(name: str, folder: pathlib.Path, classes: ClassTable) -> Writer:
    """The writer of a format.

    Raises:
      UserError: there is no such format.
    """
    if name not in FORMATS:
        raise UserError(f"--format {name}: unknown; known are {', '.join(sorted(FORMATS))}")
    return FORMATS[name](folder, classes)
