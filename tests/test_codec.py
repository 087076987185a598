"""The id codec: round trips, and files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pfcn_jax import codec
from pfcn_jax.data.decode import decode_ids


def test_colours_are_base_256_digits():
    ids = np.array([[0, 1, 255], [256, 65536, codec.MAX_ID]], np.uint32)
    rgb = codec.id_to_rgb(ids)
    slow = [[[i % 256, i // 256 % 256, i // 65536] for i in row] for row in ids.tolist()]
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, slow)
    np.testing.assert_array_equal(codec.rgb_to_id(rgb), ids)
    assert codec.rgb_to_id(rgb).dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint32, ">i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_file_round_trip(tmp_path, dtype, order):
    ids = np.random.default_rng(0).integers(0, 60000, (13, 7)).astype(dtype).copy(order=order)
    codec.write_id_png(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(decode_ids((tmp_path / "a.png").read_bytes(), "a.png"), ids)


@pytest.mark.parametrize("bad", [np.array([[-1]]), np.array([[1 << 24]]), np.array([[1.0]])])
def test_ids_that_do_not_fit_are_refused(bad):
    with pytest.raises(ValueError, match="id_to_rgb"):
        codec.id_to_rgb(bad)


@pytest.mark.parametrize("shape", [(3,), (0, 4), (2, 2, 3)])
def test_only_maps_are_written(tmp_path, shape):
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        codec.write_id_png(tmp_path / "a.png", np.zeros(shape, np.int32))


@pytest.mark.parametrize("shape, dtype", [((2, 2, 4), np.uint8), ((2, 2, 3), np.int32)])
def test_only_rgb_is_read_as_ids(shape, dtype):
    with pytest.raises(ValueError, match="rgb_to_id"):
        codec.rgb_to_id(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    "mode, kind", [("L", "8-bit gray"), ("P", "palette"), ("RGBA", "alpha"), ("LA", "alpha"), ("I;16", "16-bit gray")]
)
def test_other_kinds_of_png_are_refused(tmp_path, mode, kind):
    Image.new(mode, (4, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"a.png.*{kind}"):
        decode_ids((tmp_path / "a.png").read_bytes(), "a.png")


def test_other_files_are_refused(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("a.jpg", "empty.png"):
        with pytest.raises(ValueError, match=f"{name}: not a PNG"):
            decode_ids((tmp_path / name).read_bytes(), name)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.png"
    codec.write_id_png(path, np.random.default_rng(0).integers(0, 1 << 24, (40, 40)))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for data in (whole[: len(whole) // 2], whole[:40], bytes(flipped)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.png: broken PNG"):
            decode_ids(path.read_bytes(), path.name)
