"""Files that appear under their name only when complete: text, JSON, bytes."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON that appears under its name only when complete; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file that appears under its name only when complete."""
    write_whole(pathlib.Path(path), text.encode())


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that appears under its name only when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
