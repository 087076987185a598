"""Every door that an image file comes in by decodes it by one rule: equal pixels, or a refusal."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pfcn_jax.apps.demo.uploads import Limits, read_upload
from pfcn_jax.data.decode import decode_image
from pfcn_jax.export import run_exported
from pfcn_jax.inference.api import read_image

EIGHT = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
SIXTEEN = EIGHT.astype(np.uint16) * 257


def write_8_bits(path: pathlib.Path, mode: str, **options) -> None:
    Image.fromarray(EIGHT).convert(mode).save(path, **options)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "rgb.png": lambda path: write_8_bits(path, "RGB"),
    "rgba.png": lambda path: write_8_bits(path, "RGBA"),
    "gray.png": lambda path: write_8_bits(path, "L"),
    "palette.png": lambda path: write_8_bits(path, "P"),
    "black.png": lambda path: write_8_bits(path, "1"),
    "turned.jpg": lambda path: write_8_bits(path, "RGB", exif=turned()),
    "cmyk.jpg": lambda path: write_8_bits(path, "CMYK"),
    "plain.bmp": lambda path: write_8_bits(path, "RGB"),
    "plain.tif": lambda path: write_8_bits(path, "RGB"),
    "small.tif": lambda path: write_8_bits(path, "RGB", compression="tiff_lzw"),
    "deep_gray.png": lambda path: cv2.imwrite(str(path), SIXTEEN[:, :, 0]),
    "deep_rgb.png": lambda path: cv2.imwrite(str(path), SIXTEEN),
    "deep_rgba.png": lambda path: cv2.imwrite(str(path), np.dstack([SIXTEEN, SIXTEEN[:, :, 0]])),
    "deep_gray.tif": lambda path: cv2.imwrite(str(path), SIXTEEN[:, :, 0]),
    "deep_rgb.tif": lambda path: cv2.imwrite(str(path), SIXTEEN),
    "float.tif": lambda path: cv2.imwrite(str(path), SIXTEEN[:, :, 0].astype(np.float32)),
}
DOORS = {
    "predict and bulk": lambda path: decode_image(path.read_bytes(), str(path), upright=True),
    "demo": lambda path: read_upload(path.read_bytes(), path.name, Limits()),
    "load, a path": lambda path: read_image(path)[0],
    "load, Pillow": lambda path: read_image(Image.open(path))[0],
    "the runner of an exported model": run_exported.read,
}


@pytest.mark.parametrize("door", list(DOORS))
@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_door_decodes_alike(tmp_path, name, door):
    if door == "demo" and name.endswith(".tif"):
        pytest.skip("browsers show no TIFF")
    path = tmp_path / name
    FILES[name](path)
    if name.startswith(("deep", "float")):
        with pytest.raises(ValueError, match="more than 8 bits a channel"):
            DOORS[door](path)
        return
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    expected = np.rot90(expected, -1) if name == "turned.jpg" else expected
    np.testing.assert_array_equal(DOORS[door](path), expected)
