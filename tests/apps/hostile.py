"""Two hundred uploads that are broken, hostile or odd, made from scratch; images among them have 48 x 40 pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, PngImagePlugin

MAX_BYTES, MAX_PIXELS = 400_000, 4_000_000  # the limits that the uploads are made for
Upload = tuple[str, bytes, str | None]  # name, bytes, part of the message (None: may be an image after all)


def draw(mode: str = "RGB", size: tuple[int, int] = (48, 40)) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    pixels[8:30, 10:40] = (200, 60, 30)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG whose header says whatever it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _patched(data: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    at = data.index(marker) + offset
    return data[:at] + value + data[at + len(value) :]


def _no_images() -> Iterator[Upload]:
    rng = np.random.default_rng(1)
    yield "empty.jpg", b"", "the file is empty"
    for length in (1, 2, 3, 7, 8, 12, 16, 33, 48, 64, 100, 257, 1000, 4096, 10_000, 100_000, 399_999):
        yield f"noise_{length}.png", rng.bytes(length), "not an image"
    starts = [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!doctype html><script>alert(1)</script>", b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", b"PK\x03\x04" + bytes(60), b"\x7fELF" + bytes(60),
        b"MZ" + bytes(90), b"#!/bin/sh\nrm -rf /\n", b"GIF8", b"RIFF\x10\x00\x00\x00WAVE" + bytes(20), b"\x00" * 5000,
        b"{\"key\": 1}", b"P6\n9999999 9999999\n255\n", b"\x1f\x8b\x08" + bytes(20),
    ]  # fmt: skip
    for number, start in enumerate(starts):
        yield f"other_{number}.jpg", start, "not an image"
    for kind in ("TIFF", "PPM", "ICO", "TGA", "PCX"):
        yield f"other.{kind.lower()}", encoded(draw(), kind), "not an image"
    yield "big.bmp", encoded(draw(size=(480, 400)), "BMP"), "more than"
    yield "one_too_many.bin", bytes(MAX_BYTES + 1), "more than"


def _cut_short() -> Iterator[Upload]:
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("BMP", {})):
        whole = encoded(draw(), kind, **options)
        for part in range(1, 11):
            length = max(4, len(whole) * part // 12)
            yield f"cut_{part}.{kind.lower()}", whole[:length], "cut_"
    whole = encoded(draw(), "JPEG", progressive=True)
    for part in (3, 6, 9):
        yield f"cut_{part}.progressive.jpg", whole[: len(whole) * part // 12], "broken image"


def _flipped() -> Iterator[Upload]:
    """Bytes changed here and there: what comes out may still be an image."""
    rng = np.random.default_rng(2)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        whole = np.frombuffer(encoded(draw(), kind), np.uint8)
        for number in range(12):
            changed = whole.copy()
            places = rng.integers(0, len(whole), 1 + number)
            changed[places] = rng.integers(0, 256, len(places))
            yield f"flipped_{number}.{kind.lower()}", changed.tobytes(), None


def _giants() -> Iterator[Upload]:
    for width, height in ((2001, 2000), (50_000, 50_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1), (10**6, 9)):
        yield f"giant_{width}.png", png(width, height, data=bytes(100)), "pixels"
    yield "zero.png", png(0, 40), "zero.png"
    yield "zero_high.png", png(40, 0), "zero_high.png"
    yield "bomb.png", png(6000, 6000, color=0, depth=1, data=bytes(6000 * 751)), "6000 x 6000 (height x width) pixels"
    yield "bomb_rgb.png", png(9000, 9000, data=bytes(3_000_000)), "9000 x 9000 (height x width) pixels"
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "a" * 4_000_000, zip=True)
    yield "text_bomb.png", encoded(draw(), "PNG", pnginfo=text), "text_bomb.png"
    jpeg = encoded(draw(), "JPEG")
    yield "giant.jpg", _patched(jpeg, b"\xff\xc0", 5, b"\xff\xff\xff\xff"), "pixels"
    yield "wide.jpg", _patched(jpeg, b"\xff\xc0", 5, b"\x00\x09\xff\xff"), "wide.jpg"
    gif = encoded(draw(), "GIF")
    yield "giant.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], "pixels"
    bmp = encoded(draw(), "BMP")
    yield "giant.bmp", bmp[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + bmp[26:], "giant.bmp"
    yield "large.bmp", bmp[:18] + struct.pack("<ii", 3000, 3000) + bmp[26:], "3000 x 3000 (height x width) pixels"
    scans = encoded(draw(), "JPEG", progressive=True)
    first = scans.index(b"\xff\xda")
    second = scans.index(b"\xff\xda", first + 2)
    yield "scans.jpg", scans[:second] + scans[first:second] * 80 + scans[second:], "scans"
    for width, height in ((1, 1), (1, 300), (7, 400), (300, 8)):
        yield f"thin_{width}x{height}.png", encoded(draw(size=(width, height)), "PNG"), "side"


def _odd() -> Iterator[Upload]:
    """Images that must be taken as they are, but for the last ones."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        yield f"mode_{mode}.png", encoded(draw(mode), "PNG"), ""
    yield "mode_I_16.png", encoded(draw("I").convert("I;16"), "PNG"), "8 bits"
    for mode in ("L", "CMYK", "YCbCr"):
        yield f"mode_{mode}.jpg", encoded(draw(mode), "JPEG"), ""
    yield "transparent.png", encoded(draw("P"), "PNG", transparency=bytes(range(256))), ""
    yield "transparent.gif", encoded(draw("P"), "GIF", transparency=3), ""
    yield "progressive.jpg", encoded(draw(), "JPEG", progressive=True), ""
    yield "animated.gif", encoded(draw(), "GIF", save_all=True, append_images=[draw("L").convert("RGB")] * 5), ""
    yield "animated.webp", encoded(draw(), "WEBP", save_all=True, append_images=[draw()] * 3), ""
    yield "deep.png", png(48, 40, depth=16, data=(b"\0" + bytes(48 * 6)) * 40), "more than 8 bits a channel"
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned.jpg", encoded(draw(), "JPEG", exif=exif.tobytes()), ""
    yield "broken_exif.jpg", encoded(draw(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40), ""
    yield "after_the_end.png", encoded(draw(), "PNG") + b"<script>" * 40, ""
    for name in ("../../etc/passwd", "a" * 5000, "\x00\x1b[31m\n.png", "<img src=x onerror=alert(1)>.png", ""):
        yield name, encoded(draw(), "PNG"), ""
        yield name, b"no image", "not an image"


def uploads() -> list[Upload]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [*_no_images(), *_cut_short(), *_flipped(), *_giants(), *_odd()]
