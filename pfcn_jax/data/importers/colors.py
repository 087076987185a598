"""Class colors: tables of them in the files that tools write, and masks that are painted with them."""

from __future__ import annotations

import csv
import io
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32
from PIL import Image

from pfcn_jax.data.classes import Color, parse_color
from pfcn_jax.data.coco_json import show
from pfcn_jax.data.example import DataError, sides
from pfcn_jax.data.importers.files import read_file, read_json, read_text

MAX_UNKNOWN = 64  # so many unknown colors in one mask are no classes
_MODES = ("1", "L", "P", "RGB", "RGBA")
_NAME_LAST = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(.+)")  # CamVid: R G B name
_NAME_FIRST = re.compile(r"(.+?):(\d+),(\d+),(\d+)(:.*)?")  # CVAT: name:R,G,B:parts:actions


class ColorEntry(NamedTuple):
    """A class of a color table; `is_thing` is None where the table does not say."""

    name: str
    color: Color
    is_thing: bool | None = None


def read_color_table(path: pathlib.Path) -> list[ColorEntry]:
    """The classes of a color table, in its order.

    JSON: `[{"name": "car", "color": [64, 0, 128], "isthing": 1}, ...]` or `{"car": [64, 0, 128], ...}`. CSV with a
    header: `name,r,g,b` and perhaps `isthing`. Text: `64 0 128 Car` (CamVid) or `car:64,0,128::` (CVAT's labelmap.txt)
    a line; `#` begins a remark.

    Raises:
      DataError: none of these, a color that is not three numbers in 0..255, or a name or a color twice.
    """
    if path.suffix.lower() == ".json":
        entries = _from_json(read_json(path), path)
    elif path.suffix.lower() == ".csv":
        entries = _from_csv(read_text(path), path)
    else:
        entries = _from_lines(read_text(path), path)
    if not entries:
        raise DataError(f"{path}: no color in it", kind="category-invalid")
    for field in ("name", "color"):
        values = [getattr(entry, field) for entry in entries]
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise DataError(f"{path}: the {field} {repeated[0]} appears twice", kind="category-invalid")
    return entries


def _from_json(content: Any, path: pathlib.Path) -> list[ColorEntry]:
    if isinstance(content, dict):
        content = [{"name": name, "color": color} for name, color in content.items()]
    if not isinstance(content, list):
        raise DataError(f"{path}: holds {show(content)}, wanted: a list of classes", kind="category-invalid")
    entries = []
    for position, entry in enumerate(content):
        where = f"{path}: [{position}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"]:
            raise DataError(f"{where}: {show(entry)} has no name", kind="category-invalid")
        thing = entry.get("isthing")
        if thing is not None and (type(thing) not in (int, bool) or thing not in (0, 1)):
            raise DataError(f"{where}: isthing is {show(thing)}, must be 0 or 1", kind="category-invalid")
        color = _check_color(entry.get("color"), where)
        entries.append(ColorEntry(entry["name"], color, None if thing is None else bool(thing)))
    return entries


def _from_csv(text: str, path: pathlib.Path) -> list[ColorEntry]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
    if missing := [name for name in ("name", "r", "g", "b") if name not in columns]:
        raise DataError(f"{path}: no column {', '.join(missing)}; wanted: name,r,g,b", kind="category-invalid")
    entries = []
    for row in reader:
        where = f"{path}: line {reader.line_num}"
        color = _check_color([_to_number(row[columns[name]]) for name in "rgb"], where)
        thing = str(row[columns["isthing"]]).strip() if "isthing" in columns else ""
        if thing not in ("", "0", "1"):
            raise DataError(f"{where}: isthing is {thing!r}, must be 0 or 1", kind="category-invalid")
        entries.append(ColorEntry(str(row[columns["name"]]).strip(), color, None if not thing else thing == "1"))
    return entries


def _from_lines(text: str, path: pathlib.Path) -> list[ColorEntry]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if found := _NAME_LAST.fullmatch(line):
            *color, name = found.groups()
        elif found := _NAME_FIRST.fullmatch(line):
            name, *color = found.groups()[:4]
        else:
            raise DataError(
                f"{path}: line {number}: {line!r:.60} is neither `R G B name` nor `name:R,G,B::`",
                kind="category-invalid",
            )
        entries.append(ColorEntry(name.strip(), _check_color([_to_number(c) for c in color], f"{path}: line {number}")))
    return entries


def _to_number(text: Any) -> Any:
    return int(text) if isinstance(text, str) and text.strip().isdecimal() else text


def _check_color(value: Any, where: str) -> Color:
    if isinstance(value, str) and (color := parse_color(value)) is not None:
        return color
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 3
        or not all(type(part) is int and 0 <= part <= 255 for part in value)
    ):
        raise DataError(
            f'{where}: color is {show(value)}, wanted: three numbers in 0..255 or "#rrggbb"', kind="category-invalid"
        )
    return value[0], value[1], value[2]


def voc_color(index: int) -> Color:
    """The color of Pascal VOC's palette for index 0..255: its bits, from the lowest, spread over R, G, B in turn."""
    red = green = blue = 0
    for place in range(7, -1, -1):
        red, green, blue = (part | (index >> bit & 1) << place for part, bit in ((red, 0), (green, 1), (blue, 2)))
        index >>= 3
    return red, green, blue


def pack(color: Sequence[int]) -> int:
    """A color as one number, as in `read_colors`."""
    return color[0] << 16 | color[1] << 8 | color[2]


def unpack(number: int) -> Color:
    """The color of such a number."""
    return number >> 16, number >> 8 & 255, number & 255


def has_indices(path: pathlib.Path) -> bool:
    """True for masks with one value a pixel (gray or palette), False for those with colors. Reads the header."""
    with _open(path) as image:
        return image.mode not in ("RGB", "RGBA")


def read_colors(path: pathlib.Path, size: tuple[int, int]) -> Int32[np.ndarray, "h w"]:
    """The colors of a mask as one number a pixel, 65536 R + 256 G + B; a palette's colors, not its indices.

    Raises:
      DataError: not readable, with 16 bits a channel, partly transparent, or of another size than its image (`size`).
    """
    with _open(path) as image:
        if image.mode not in _MODES:
            raise DataError(f"{path}: an image of mode {image.mode}; wanted: 8-bit RGB or palette", kind="label-format")
        if (image.height, image.width) != size:
            raise DataError(
                f"{path}: is {sides((image.height, image.width))}, but its image is {sides(size)}", kind="label-size"
            )
        try:
            pixels = np.asarray(image.convert("RGBA" if image.mode == "RGBA" else "RGB")).astype(np.int32)
        except Exception as error:  # Pillow's readers raise errors of many kinds
            raise DataError(f"{path}: broken image ({error})", kind="label-unreadable") from error
    if pixels.shape[2] == 4 and (pixels[:, :, 3] != 255).any():
        raise DataError(f"{path}: partly transparent, so its colors are not exact; save it as RGB", kind="label-format")
    return pixels[:, :, 0] << 16 | pixels[:, :, 1] << 8 | pixels[:, :, 2]


def _open(path: pathlib.Path) -> Image.Image:
    data = read_file(path)
    try:
        return Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "BMP"))
    except Exception as error:
        raise DataError(f"{path}: not a PNG, TIFF or BMP ({error})", kind="label-unreadable") from error


def match_colors(
    values: Int[np.ndarray, "h w"], known: Sequence[Color], path: pathlib.Path
) -> tuple[Int32[np.ndarray, "h w"], dict[Color, int]]:
    """The index of each pixel's color in `known` (-1: not there), and the pixels of each unknown color.

    Raises:
      DataError: more unknown colors than classes could have.
    """
    numbers, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    index_of = {pack(color): index for index, color in enumerate(known)}
    indices = np.array([index_of.get(number, -1) for number in numbers.tolist()], np.int32)
    unknown = {unpack(int(numbers[i])): int(count[i]) for i in np.flatnonzero(indices < 0)}
    if len(unknown) > MAX_UNKNOWN:
        raise DataError(
            f"{path}: {len(unknown)} colors that the table lacks: softened by JPEG or by resizing, or of another data "
            "set; write masks as PNG, resize them with the nearest neighbor",
            kind="label-value",
        )
    return indices[inverse].reshape(values.shape), unknown
