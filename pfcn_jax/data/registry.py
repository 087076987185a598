"""The registry of data sets: name -> how its splits are listed and opened. Each data set's file registers itself."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pathlib
from collections.abc import Callable, Iterable

from pfcn_jax.data.example import DataError, Source
from pfcn_jax.data.options import DataOptions
from pfcn_jax.errors import ConfigError

Open = Callable[[DataOptions, str], Source]  # (settings, split) -> its examples
ListSplits = Callable[[str], Iterable[str]]  # root -> names of the splits below it

# Imported on first use: TFDS alone takes seconds. The name is also that of the file in `datasets/`.
BUILT_IN = ("ade20k", "cityscapes", "coco", "mapillary", "scenes", "tfds")


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A registered data set.

    Fields:
      name: as in `data.source`.
      module: of the file that registered it.
      open: a split of it; raises DataError.
      list_splits: the splits below a root (any order, repeats allowed).
      reads_root: False for data that are generated, for which `data.root` means nothing.
    """

    name: str
    module: str
    open: Open
    list_splits: ListSplits
    reads_root: bool = True


_DATA_SETS: dict[str, DataSet] = {}


def register(name: str, *, splits: ListSplits, reads_root: bool = True) -> Callable[[Open], Open]:
    """Decorates `(options, split) -> Source`: the function becomes data set `name` (see `DataSet` for the others).

    Raises:
      ValueError: another file has registered that name.
    """

    def add(function: Open) -> Open:
        other = _DATA_SETS.get(name)
        if other is not None and other.module != function.__module__:
            raise ValueError(f"data set {name!r} of {function.__module__}: {other.module} has registered that name")
        _DATA_SETS[name] = DataSet(name, function.__module__, function, splits, reads_root)
        return function

    return add


def check_source(source: str) -> None:
    """Checks a value of `data.source` without importing anything: a known name, `module:name` or a dotted module.

    Raises:
      ConfigError: a name that nothing has registered; the message lists the known ones.
    """
    if source in BUILT_IN or source in _DATA_SETS:
        return
    module, colon, name = source.partition(":")
    is_path = all(part.isidentifier() for part in module.split(".")) and bool(name or not colon)
    if is_path and (colon or "." in module):
        return
    known = sorted({*BUILT_IN, *_DATA_SETS})
    near = difflib.get_close_matches(source, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"config.data.source: no data set {source!r}{hint} (known: {', '.join(known)}; your own: module:name, "
        "docs/extending.md)"
    )


def find_dataset(source: str) -> DataSet:
    """The data set that `data.source` names. A module is imported, as Python finds it.

    Raises:
      ConfigError: an unknown name, a module that cannot be imported, or one that does not register the data set.
    """
    check_source(source)
    if source in _DATA_SETS:
        return _DATA_SETS[source]
    if source in BUILT_IN:
        importlib.import_module(f"pfcn_jax.data.datasets.{source}")
        return _DATA_SETS[source]
    module, _, name = source.partition(":")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"config.data.source: {module!r} cannot be imported ({error})") from error
    own = [entry for entry in _DATA_SETS.values() if entry.module == module and name in ("", entry.name)]
    if len(own) != 1:
        there = ", ".join(sorted(entry.name for entry in _DATA_SETS.values() if entry.module == module)) or "none"
        wanted = f"data set {name!r}" if name else "exactly one data set"
        raise ConfigError(f"config.data.source: {module} must register {wanted} (it registers: {there})")
    return own[0]


def list_splits(name: str, root: str | pathlib.Path) -> list[str]:
    """The splits of a data set that lie below `root` (a folder or a URI), in name order.

    Raises:
      DataError: there is none.
    """
    dataset = find_dataset(name)
    if dataset.reads_root and "://" not in str(root) and not pathlib.Path(root).is_dir():
        raise DataError(f"{root}: no such data directory", kind="data-missing")
    splits = sorted(set(dataset.list_splits(str(root))))
    if not splits:
        raise DataError(
            f"{root}: no split of a {name!r} data set found; docs/datasets.md shows the layout", kind="no-split"
        )
    return splits


def open_source(name: str, root: str | pathlib.Path, split: str) -> Source:
    """Opens a split with default settings; `data.inputs.open_split` opens it as a config says.

    Args:
      name: as in `data.source`.
      root: the data directory.
      split: the data set's name of the split, as `train2017` or `val`.

    Raises:
      ConfigError: an unknown name; the message lists the known ones.
      DataError: the directory is not such a data set.
    """
    return find_dataset(name).open(DataOptions(source=name, root=str(root)), split)
