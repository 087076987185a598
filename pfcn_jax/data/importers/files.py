"""Bytes, text and JSON of files that people bring."""

from __future__ import annotations

import pathlib
from typing import Any

from pfcn_jax.data.coco_json import parse_json
from pfcn_jax.data.example import DataError


def read_file(path: pathlib.Path, kind: str = "label-missing") -> bytes:
    """The bytes of a file.

    Args:
      kind: of the error.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", kind=kind) from error


def read_text(path: pathlib.Path) -> str:
    """The content of a text file in UTF-8, with or without a byte-order mark.

    Raises:
      DataError: it cannot be read, or is no such text.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error})", kind="label-unreadable") from error


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      DataError: it cannot be read, or is no JSON.
    """
    return parse_json(read_file(path, "json-missing"), str(path))
