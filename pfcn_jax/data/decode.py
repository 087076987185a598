"""Bytes of a JPEG or PNG -> arrays, and the checks that a decoder leaves out.

OpenCV decodes 8-bit color and gray images, bit-equal to Pillow and faster; anything else (CMYK, palettes, alpha)
and anything suspicious goes through Pillow, which is stricter: OpenCV returns the upper half of a truncated JPEG
without a word. Data sets are read with EXIF orientation ignored on purpose: COCO's labels belong to the pixels as they
are stored. People's own photos are turned upright (`upright=True`).
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, UnidentifiedImageError

from pfcn_jax.codec import MAX_ID, describe_png, rgb_to_id
from pfcn_jax.data.example import DataError

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError)
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of the limit; beyond it is our error
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_8BIT = (8, 2)  # bit depth and color type in a PNG's header
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG markers; three of the row mean others
_GREY, _PALETTE = 0, 3  # color types
_ORIENTATION = 0x0112  # EXIF tag
_RAW_16_BIT = re.compile(";16[BLN]")  # Pillow's raw modes of 16 bits a channel (BMP's "BGR;16" has 16 a pixel)


def decode_image(data: bytes, name: str, *, upright: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB; gray, CMYK and palette images are converted, alpha is dropped.

    Args:
      upright: turn the image as its EXIF orientation says.

    Raises:
      DataError: not an image, truncated or damaged, or of more than 8 bits a channel; names `name`.
    """
    if not upright and (found := jpeg_header(data)) and found.is_plain and _is_complete(data, "JPEG"):
        decoded = _decode_color(data, found.height, found.width)
        if decoded is not None:  # without Pillow's look at the header, which costs a tenth of the decoding
            return decoded
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            mode, kind = image.mode, image.format
            if has_deep_channels(image):
                raise DataError(
                    f"{name}: an image of mode {mode} with more than 8 bits a channel; convert it to 8 bits",
                    kind="picture-format",
                )
            orientation = read_orientation(image) if upright else 1
            if mode in ("RGB", "L") and _is_complete(data, kind):
                decoded = _decode_color(data, image.height, image.width)
                if decoded is not None:
                    return turn(decoded, orientation)
            return turn(np.array(image.convert("RGB")), orientation)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name}: too large, the limit is {max_pixels() / 1e6:.3g} megapixels{_stated_size(error)}; resize it, or "
            "raise the limit (predict --max-megapixels)",
            kind="image-too-large",
        ) from error
    except _BROKEN as error:
        raise DataError(f"{name}: broken image ({error})", kind="picture-unreadable") from error


def _stated_size(error: Image.DecompressionBombError) -> str:
    """The size of the image, of which Pillow tells nothing but its message."""
    pixels = re.search(r"\d+", str(error))
    return f", it has {int(pixels[0]) / 1e6:.3g}" if pixels else ""


def _decode_color(data: bytes, height: int, width: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """None: OpenCV cannot, or finds another size."""
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return decoded if decoded is not None and decoded.shape[:2] == (height, width) else None


class JpegHeader(NamedTuple):
    """The frame header of a JPEG (ITU T.81, B.2.2)."""

    bits: int
    height: int
    width: int
    channels: int

    @property
    def is_plain(self) -> bool:
        """Color or gray of 8 bits, not CMYK, and of a size that Pillow, too, would open."""
        return self.bits == 8 and self.channels in (1, 3) and self.height * self.width <= max_pixels()


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The frame header of JPEG bytes; None if they are something else, or are damaged before it."""
    if not data.startswith(b"\xff\xd8"):
        return None
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            return JpegHeader(*struct.unpack_from(">BHHB", data, position + 4))
        # Bytes that fill up, and markers that stand alone; all others say how long they are.
        alone = 1 if marker == 0xFF else 2 if marker == 0x01 or 0xD0 <= marker <= 0xD9 else 0
        position += alone or 2 + int.from_bytes(data[position + 2 : position + 4])
    return None


def max_pixels() -> float:
    """The most pixels that an image may have: Pillow's limit, which `set_max_pixels` changes."""
    return 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else float("inf")


def set_max_pixels(pixels: int) -> None:
    """Sets the limit of `max_pixels` for this process."""
    Image.MAX_IMAGE_PIXELS = (pixels + 1) // 2


def stored_orientation(data: bytes) -> int:
    """The EXIF orientation 1..8 in the bytes of an image file; 1 if there is none. Reads headers only."""
    if data.startswith(b"\xff\xd8") and b"Exif\0\0" not in data[: 1 << 16]:
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read_orientation(image)
    except (*_BROKEN, struct.error):
        return 1


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8; 1, as it is stored, if there is none or it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF data say nothing about the image
            value = image.getexif().get(_ORIENTATION, 1)
    except (*_BROKEN, struct.error, KeyError, TypeError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn(image: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image upright; `orientation` as in EXIF: 2, 4 mirrored, 3 upside down, 5..8 on their side."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def decode_ids(data: bytes, name: str) -> Int[np.ndarray, "h w"]:
    """A COCO-panoptic PNG as segment ids, R + 256 G + 65536 B.

    Raises:
      DataError: not an 8-bit RGB PNG (any other kind would be read as other ids), truncated or damaged; names `name`.
    """
    if not data.startswith(_PNG_SIGNATURE) or len(data) < 26:
        raise DataError(f"{name}: not a PNG file", kind="label-unreadable")
    if (data[24], data[25]) != _RGB_8BIT:
        raise DataError(f"{name}: a panoptic PNG must be 8-bit RGB, this is {describe_png(data)}", kind="label-format")
    if _is_complete(data, "PNG"):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if decoded is not None:
            with_alpha = cv2.cvtColor(decoded, cv2.COLOR_RGB2RGBA)  # four bytes a pixel, read as one number
            ids = with_alpha.view("<i4")[:, :, 0]
            ids &= MAX_ID  # the alpha is 255 everywhere
            return ids
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return rgb_to_id(np.asarray(image))
    except _BROKEN as error:
        raise DataError(f"{name}: broken PNG ({error})", kind="label-unreadable") from error


def decode_values(data: bytes, name: str) -> Int[np.ndarray, "h w"]:
    """A PNG with one value a pixel as int32: gray of 8 or 16 bits, or the indices of a palette.

    Raises:
      DataError: not such a PNG, truncated or damaged; names `name`.
    """
    if not data.startswith(_PNG_SIGNATURE) or len(data) < 26:
        raise DataError(f"{name}: not a PNG file", kind="label-unreadable")
    depth, color = data[24], data[25]
    if color not in (_GREY, _PALETTE):
        raise DataError(
            f"{name}: expected a PNG of one value a pixel (gray or palette), this is {describe_png(data)}; a mask in "
            "the colors of its classes is read by `prepare palette`",
            kind="label-format",
        )
    if color == _GREY and 1 < depth < 8:  # these would come out scaled to 0..255
        raise DataError(
            f"{name}: a gray PNG of {depth} bits a pixel; save it with 8 bits or as a palette", kind="label-format"
        )
    if color == _GREY and depth >= 8 and _is_complete(data, "PNG"):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is not None:
            return decoded.astype(np.int32)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return np.asarray(image).astype(np.int32)
    except _BROKEN as error:
        raise DataError(f"{name}: broken PNG ({error})", kind="label-unreadable") from error


def has_deep_channels(image: Image.Image) -> bool:
    """True for an image of more than 8 bits a channel, which Pillow would cut to 8 bits in silence.

    Modes I and F say so. Of PNGs with color or alpha and of TIFFs the raw mode says it, until the file is decoded (by
    Pillow also when it is asked for the EXIF data of a PNG).
    """
    return image.mode.startswith(("I", "F")) or bool(_RAW_16_BIT.search(str(getattr(image, "tile", ""))))


def _is_complete(data: bytes, kind: str | None) -> bool:
    """True if the file has its end marker; a few bytes of padding may follow it."""
    if kind == "JPEG":
        return data.rfind(b"\xff\xd9", max(0, len(data) - 64)) >= 0
    if kind == "PNG":
        return data.rfind(b"IEND", max(0, len(data) - 64)) >= 0
    return False
