"""From a name of the zoo to a checkpoint: fetched, converted once, kept by the digest of its source."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from pfcn_jax.checkpoints.conversion import convert_file
from pfcn_jax.checkpoints.format import CheckpointError
from pfcn_jax.config.schema import Config, from_dict
from pfcn_jax.interop import zoo
from pfcn_jax.interop.download import Cache, fetch_verified

CONVERTER = 1  # raised when the same file is converted to other variables or another config than before


def resolve(path: pathlib.Path) -> pathlib.Path:
    """`path` itself if something is there, else the checkpoint of the weights that it names.

    Raises:
      CheckpointError: nothing is there, and it is no name of the zoo.
      DownloadError: it is one, but the file cannot be had.
    """
    name = str(path)
    if path.exists() or os.sep in name:
        return path
    if name not in zoo.TABLE:
        near = zoo.nearest(name)
        known = f"did you mean {' or '.join(near)}?" if near else "`weights list` shows the names"
        raise CheckpointError(f"{name}: no checkpoint here, and no known weights have this name; {known}")
    return checkpoint_of(zoo.find(name), Cache.default())


def checkpoint_of(entry: zoo.Weights, cache: Cache) -> pathlib.Path:
    """The converted checkpoint of an entry: the working directory that `convert` would make."""
    source, digest = fetch_verified(entry, cache)
    target = converted_path(entry, cache, digest)
    if target.exists():
        return target
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        keys = {"name": entry.name, **entry.config, **({"model.backbone": entry.backbone} if entry.backbone else {})}
        convert_file(source, with_keys(Config(), keys), aside)
        aside.rename(target)
    except FileExistsError:
        shutil.rmtree(aside)  # another process was faster
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not target.exists():
            raise
    return target


def converted_path(entry: zoo.Weights, cache: Cache, digest: str) -> pathlib.Path:
    """Path of the converted copy of a source with this SHA-256."""
    return cache.root / "converted" / f"{entry.name}-{digest[:16]}-v{CONVERTER}"


def converted_copies(entry: zoo.Weights, cache: Cache) -> list[pathlib.Path]:
    """The converted copies of an entry that are there, of any source file and converter, unfinished ones included."""
    copy = re.compile(rf"{re.escape(entry.name)}-[0-9a-f]{{16}}-v\d+(\.\d+)?")  # another name may begin alike
    return [path for path in sorted((cache.root / "converted").glob("*")) if copy.fullmatch(path.name)]


def with_keys(config: Config, keys: Mapping[str, Any]) -> Config:
    """The config with dotted keys replaced, checked as any config is."""
    tree = dataclasses.asdict(config)
    for dotted, value in keys.items():
        *sections, key = dotted.split(".")
        part = tree
        for section in sections:
            part = part[section]
        part[key] = value
    return from_dict(tree)
