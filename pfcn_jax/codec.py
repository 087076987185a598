"""The id codec of COCO-panoptic PNGs (id = R + 256 G + 65536 B, 8-bit RGB), a leaf module that any room may use."""

from __future__ import annotations

import io
import os
import pathlib

import numpy as np
from jaxtyping import Int, Integer, UInt8
from PIL import Image

MAX_ID = (1 << 24) - 1


def rgb_to_id(rgb: UInt8[np.ndarray, "*size 3"]) -> Int[np.ndarray, "*size"]:
    """The int32 ids of an image's colors: R + 256 G + 65536 B."""
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
        raise ValueError(f"rgb_to_id: expected uint8 [..., 3], got {rgb.dtype} {list(rgb.shape)}")
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def id_to_rgb(ids: Integer[np.ndarray, "*size"]) -> UInt8[np.ndarray, "*size 3"]:
    """The colors of ids in 0..2^24 - 1; any other id is a ValueError."""
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"id_to_rgb: expected integer ids, got {ids.dtype}")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > MAX_ID):
        raise ValueError(f"id_to_rgb: ids {int(ids.min())}..{int(ids.max())} do not fit 0..{MAX_ID}")
    rgb = np.empty((*ids.shape, 3), np.uint8)
    for channel, shift in enumerate((0, 8, 16)):
        rgb[..., channel] = (ids >> shift) & 255
    return rgb


def exchange_red_blue(ids: Integer[np.ndarray, "*size"]) -> Integer[np.ndarray, "*size"]:
    """The ids of the same image read as BGR instead of RGB, or the other way round."""
    return (ids & 255) << 16 | ids & 0xFF00 | ids >> 16


def describe_png(data: bytes) -> str:
    """Bit depth and color type of a PNG's header in words, as `16-bit gray`."""
    names = {0: "gray", 2: "RGB", 3: "palette", 4: "gray + alpha", 6: "RGB + alpha (RGBA)"}
    return f"{data[24]}-bit {names.get(data[25], f'color type {data[25]}')}"


def encode_id_png(ids: Integer[np.ndarray, "H W"]) -> bytes:
    """An id map `[H, W]` with ids in 0..2^24 - 1 (0 = void) as the bytes of an 8-bit RGB PNG."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"an id map has shape [H, W] with H, W > 0, got {list(ids.shape)}")
    file = io.BytesIO()
    Image.fromarray(id_to_rgb(ids)).save(file, format="PNG")
    return file.getvalue()


def write_id_png(path: str | os.PathLike[str], ids: Integer[np.ndarray, "H W"]) -> None:
    """Writes an id map `[H, W]` with ids in 0..2^24 - 1 (0 = void) as an 8-bit RGB PNG; the folder must exist."""
    pathlib.Path(path).write_bytes(encode_id_png(ids))
