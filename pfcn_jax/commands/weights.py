"""`weights`: published weights by name: what there is, fetched and converted once, verified, removed.

weights list                              every name with its file, license and published figure
weights get NAME ...                      fetch, verify and convert; afterwards it works offline
weights path NAME                         the folder of the converted checkpoint, for scripts
weights verify [NAME ...]                 compare the files that are there with their digests
weights remove NAME ...                   delete the file and its converted copies

Every verb that takes a checkpoint takes a name: `predict --checkpoint panoptic-fcn-r50-3x photo.jpg`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from pfcn_jax.checkpoints.named import checkpoint_of, converted_copies
from pfcn_jax.errors import UserError
from pfcn_jax.interop.download import Cache, check, fetch
from pfcn_jax.interop.zoo import TABLE, Weights, find
from pfcn_jax.utils.stderr import print_lines
from pfcn_jax.utils.tables import as_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "get", "path", "verify", "remove"))
    parser.add_argument("names", nargs="*", metavar="NAME")


def main(args: argparse.Namespace) -> int:
    cache = Cache.default()
    entries = [find(name) for name in args.names]
    if args.action == "list":
        print(_listing(entries or list(TABLE.values()), cache))
        return 0
    if args.action == "verify":
        return _verify(entries or [entry for entry in TABLE.values() if cache.path_of(entry).exists()], cache)
    if not entries:
        raise UserError(f"weights {args.action}: name at least one (`weights list` shows the names)")
    for entry in entries:
        if args.action == "remove":
            _remove(entry, cache)
        else:
            print(checkpoint_of(entry, cache))
    return 0


def _listing(entries: Sequence[Weights], cache: Cache) -> str:
    table = Table(box=None, pad_edge=False)
    for column in ("name", "published", "here", "license"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        here = "package" if entry.package else "yes" if cache.path_of(entry).exists() else "-"
        table.add_row(escape(entry.name), entry.published or "-", here, escape(entry.license))
    return f"{as_text(table, width=140)}\ncache: {cache.root}"


def _verify(entries: Sequence[Weights], cache: Cache) -> int:
    """Checks each file; 1 if one is not as published or recorded."""
    wrong = 0
    for entry in entries:
        try:
            path = fetch(entry, cache) if entry.package else cache.path_of(entry)
            if not path.exists():
                raise UserError(f"{entry.name}: not fetched yet (`weights get {entry.name}`)")
            print(f"{entry.name}: {check(entry, path, cache)}")
        except UserError as error:
            print_lines(f"error: {error}")
            wrong += 1
    return min(wrong, 1)


def _remove(entry: Weights, cache: Cache) -> None:
    """Deletes the converted copies of an entry, and its file unless an entry of another name shares it."""
    for copy in converted_copies(entry, cache):
        shutil.rmtree(copy)
        print(f"removed {copy}")
    path = cache.path_of(entry)
    sharing = [other for other in TABLE.values() if other.file == entry.file and other.name != entry.name]
    used = [other.name for other in sharing if converted_copies(other, cache)]
    if used:
        print_lines(f"{path} stays: {', '.join(used)} was made from it")
        return
    for file in (path, path.with_name(path.name + ".partial"), path.with_name(path.name + ".lock")):
        if file.exists():
            file.unlink()
            print(f"removed {file}")
