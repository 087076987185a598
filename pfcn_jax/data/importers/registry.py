"""The registry of importers: `prepare FORMAT` -> flags and the function that converts. Each file registers itself."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Callable

AddFlags = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], list[str]]  # flags -> lines of the summary

# Modules of this folder with an importer; importing one registers it.
_MODULES = (
    "instances", "masks", "semantic", "palette",
    "yolo", "labelme", "voc", "cvat", "label_studio", "roboflow", "supervisely",
    "arrayrecord",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Importer:
    """A format that `prepare` reads."""

    name: str
    help: str  # one line
    add_flags: AddFlags
    run: Run


_IMPORTERS: dict[str, Importer] = {}


def register(name: str, *, help: str, add_flags: AddFlags) -> Callable[[Run], Run]:
    """Decorates the function that converts: it takes the parsed flags and returns the lines to print."""

    def add(function: Run) -> Run:
        _IMPORTERS[name] = Importer(name, help, add_flags, function)
        return function

    return add


def importers() -> dict[str, Importer]:
    """All importers by name."""
    for module in _MODULES:
        importlib.import_module(f"{__package__}.{module}")
    return dict(_IMPORTERS)
