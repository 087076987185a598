"""COCO's JSON files, read strictly: every value has the type and range that its key asks for, or an error names it.

`json.loads` and a table of `Field`s; a `Report` decides whether an error stops (training) or is collected (checks).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfcn_jax.data.classes import ClassTable, is_text
from pfcn_jax.data.example import DataError
from pfcn_jax.data.kinds import Report

MAX_SIDE = 1_000_000  # pixels of an image's side
_REQUIRED = object()
_TYPE_NAMES = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """A key of an entry: which values it accepts, in code and in words. Without a default the key must be there."""

    name: str
    accepts: Callable[[Any], bool]
    wanted: str
    default: Any = _REQUIRED


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer() and abs(value) < 2**53)


def is_file_name(value: Any) -> bool:
    """True for text that a file can be called by."""
    return is_text(value) and value != "" and "\0" not in value


def whole(name: str, low: int, high: int) -> Field:
    """A whole number in low..high (96.0 counts as 96)."""
    return Field(name, lambda value: _is_whole(value) and low <= value <= high, f"a whole number from {low} to {high}")


IMAGE_ID = Field("id", lambda value: _is_whole(value) or is_text(value), "a whole number or text")
OF_IMAGE = Field("image_id", IMAGE_ID.accepts, IMAGE_ID.wanted)
FILE_NAME = Field("file_name", is_file_name, "the text of a file name")
CATEGORY_ID = Field("category_id", _is_whole, "a whole number")
IS_CROWD = Field("iscrowd", lambda value: type(value) in (int, bool) and value in (0, 1), "0 or 1", default=0)
IMAGE = (IMAGE_ID, FILE_NAME, whole("height", 1, MAX_SIDE), whole("width", 1, MAX_SIDE))


def show(value: Any) -> str:
    """A value and its JSON type for a message, as `'0' (text)`, at most 60 characters of it."""
    text = repr(value)
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{shown} ({_TYPE_NAMES.get(type(value), type(value).__name__)})" if value is not None else "null"


def parse_json(data: bytes, path: str) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
      DataError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})", kind="json-broken") from error


def parse_parts(
    data: bytes, path: str, form: str, parts: Sequence[str] = ("categories", "images", "annotations")
) -> dict[str, list[Any]]:
    """Lists of a COCO file, by name.

    Args:
      form: of the file, for the message: `panoptic` or `detection`.
      parts: the names of the lists that must be there.

    Raises:
      DataError: not JSON, no object, a part is missing or is no list.
    """
    content = parse_json(data, path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: holds {_TYPE_NAMES[type(content)]}, but a COCO-{form} file is an object with {', '.join(parts)}",
            kind="json-part-missing",
        )
    missing = [part for part in parts if part not in content]
    if missing:
        raise DataError(f"{path}: no {', '.join(missing)}; is it a COCO-{form} file?", kind="json-part-missing")
    for part in parts:
        if not isinstance(content[part], list):
            raise DataError(f"{path}: {part} must be a list, got {show(content[part])}", kind="json-part-missing")
    return {part: content[part] for part in parts}


def parse_classes(categories: Any, path: str) -> ClassTable:
    """The class table of a file's `categories`.

    Raises:
      DataError: what `ClassTable.from_coco` refuses.
    """
    try:
        return ClassTable.from_coco(categories)
    except ValueError as error:
        raise DataError(f"{path}: {error}", kind="category-invalid") from error


def read_entry(entry: Any, fields: Sequence[Field], where: str, report: Report) -> dict[str, Any] | None:
    """The checked values of an entry's fields; None if any of them is missing or not acceptable (reported)."""
    if not isinstance(entry, dict):
        report("value-invalid", f"{where}: must be an object, got {show(entry)}")
        return None
    missing = [field.name for field in fields if field.default is _REQUIRED and field.name not in entry]
    if missing:
        report("entry-incomplete", f"{where} has no {', '.join(missing)}")
        return None
    values = {}
    for field in fields:
        value = entry.get(field.name, field.default)
        if not field.accepts(value):
            report("value-invalid", f"{where}: {field.name} is {show(value)}, must be {field.wanted}")
            return None
        values[field.name] = int(value) if type(value) is float else value
    return values


def other_type_hint(value: Any, known: Mapping[Any, Any], where: str) -> str:
    """`; text here, a number in ...` if `known` has the id as the other type, else ""."""
    try:
        other = int(value) if isinstance(value, str) else str(value)
    except ValueError:
        return ""
    if other not in known:
        return ""
    return f"; it is {_TYPE_NAMES[type(value)]} here, {_TYPE_NAMES[type(other)]} in {where}"
