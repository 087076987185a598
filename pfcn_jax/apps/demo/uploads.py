"""An image from a stranger: checked before it is decoded, so that nothing it says costs more than its limits allow."""

from __future__ import annotations

import dataclasses
import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from pfcn_jax.data.decode import decode_image
from pfcn_jax.data.example import DataError, sides

# Formats that browsers show. Pillow knows dozens more, some with programs of their own behind them.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_MAX_SCANS = 64  # of a progressive JPEG, each of which costs as much as a whole image; encoders write about 10
_START_OF_SCAN = b"\xff\xda"
_SHORTEST_SIDE = 8
_MAX_ASPECT = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one upload."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 40_000_000


def read_upload(data: bytes, name: str, limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB; of an animation its first frame.

    Raises:
      DataError: whatever is wrong with the file, in one sentence that names `name` and the limit.
    """
    name = _printable(name)
    if not data:
        raise DataError(f"{name}: the file is empty")
    if len(data) > limits.max_bytes:
        raise DataError(too_large(name, limits))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes and palettes: judged here
            _check_header(data, name, limits)
            return decode_image(data, name, upright=True)
    except DataError:
        raise
    except Exception as error:  # a decoder may fail in any way on bytes that are made to break it
        raise DataError(f"{name}: broken image ({type(error).__name__})") from error


def too_large(name: str, limits: Limits) -> str:
    """The message for a file of too many bytes."""
    return f"{_printable(name)}: the file has more than {limits.max_bytes / 2**20:g} MiB"


def _check_header(data: bytes, name: str, limits: Limits) -> None:
    """Size and kind from the header alone: nothing is decoded yet."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            shape = sides((height, width))
            kind = image.format
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image, or none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more than {limits.max_pixels / 1e6:g} megapixels") from error
    if width * height > limits.max_pixels:
        raise DataError(f"{name}: {shape} pixels are more than {limits.max_pixels / 1e6:g} megapixels")
    if min(width, height) < _SHORTEST_SIDE:
        raise DataError(f"{name}: {shape} pixels; the shorter side must have {_SHORTEST_SIDE} at least")
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise DataError(f"{name}: {shape} pixels; one side is more than {_MAX_ASPECT} times the other")
    if kind == "JPEG" and data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise DataError(f"{name}: a JPEG of more than {_MAX_SCANS} scans")


def _printable(name: str) -> str:
    """A name that fits into a message, whatever it holds."""
    shown = "".join(letter for letter in name if letter.isprintable())
    return shown[:77] + "..." if len(shown) > 80 else shown or "image"
