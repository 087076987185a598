"""Manifest of a checkpoint: every file with its size and checksum, to detect damage that Orbax does not detect.

Orbax writes a checkpoint whole or not at all, but a disk may lose or change what was written. Of bits flipped in the
stored arrays Orbax detects only those that break the compression: about half of them were read as other numbers
(docs/decisions.md). So `manifest.json` is written into the checkpoint before the folder is renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

from pfcn_jax.utils.atomic import write_text
from pfcn_jax.utils.retry import retry_read

MANIFEST = "manifest.json"
# Files that Orbax writes after the manifest; nothing is read from them.
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_manifest(checkpoint: pathlib.Path) -> None:
    """Writes the manifest of a complete checkpoint, and flushes all of its files to the disk."""
    files = {}
    for path in _files_below(checkpoint):
        name = path.relative_to(checkpoint).as_posix()
        if name not in (*_NOTES, MANIFEST):
            files[name] = [path.stat().st_size, _digest_of(path, sync=True)]
    text = json.dumps({"files": files, "sha256": _digest(files)}, indent=1, sort_keys=True) + "\n"
    write_text(checkpoint / MANIFEST, text)


def find_damage(checkpoint: pathlib.Path, items: Sequence[str] = ()) -> list[str]:
    """Returns one line for each file that differs from the manifest; an empty list if the checkpoint is intact.

    Args:
      items: check only these items ("model", "meta"); all by default.
    """
    try:
        manifest = json.loads(retry_read((checkpoint / MANIFEST).read_bytes))
        files = manifest["files"]
        if _digest(files) != manifest["sha256"]:
            return [f"{MANIFEST}: its checksum differs"]
        if not files:
            return [f"{MANIFEST}: lists no file"]
        entries = [(name, int(size), str(digest)) for name, (size, digest) in files.items()]
    except FileNotFoundError:
        return [f"{MANIFEST}: missing"]
    except OSError as error:
        return [f"{MANIFEST}: cannot be read ({error.strerror})"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST}: not readable as it was written"]
    chosen = [entry for entry in entries if not items or entry[0].split("/")[0] in items]
    return [line for name, size, digest in chosen if (line := _damage_of(checkpoint / name, name, size, digest))]


def _damage_of(path: pathlib.Path, name: str, size: int, digest: str) -> str:
    """Compares one file with its entry; "" if it is intact."""
    try:
        there = path.stat().st_size
        if there != size:
            return f"{name}: {there} of {size} bytes"
        if retry_read(lambda: _digest_of(path)) != digest:
            return f"{name}: its checksum differs"
    except FileNotFoundError:
        return f"{name}: missing"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror})"
    return ""


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """Every file at any depth. (`Path.rglob` silently skips folders that it cannot list.)"""

    def fail(error: OSError) -> NoReturn:
        raise error

    return sorted(pathlib.Path(where, name) for where, _, names in os.walk(folder, onerror=fail) for name in names)


def _digest_of(path: pathlib.Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
