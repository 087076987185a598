"""Image files by suffix, without the hidden files that operating systems leave beside them."""

from __future__ import annotations

import collections
import os
import pathlib
import unicodedata
from collections.abc import Iterable

from PIL import features

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif",
    *((".avif",) if features.check("avif") else ()),
)  # fmt: skip
# Images that are not decoded: named when a folder is searched, so that nobody misses them in silence.
UNREADABLE = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".psd")


def find_normalized(path: pathlib.Path) -> pathlib.Path | None:
    """The file at `path`, with its accents composed or decomposed, whichever is on disk; None if there is none."""
    names = [path.name, *(unicodedata.normalize(form, path.name) for form in ("NFC", "NFD"))]
    return next((path.with_name(name) for name in names if os.path.isfile(path.with_name(name))), None)


def compose(name: str) -> str:
    """A name or path with composed accents, to compare them: macOS decomposes accents, most JSONs compose them."""
    return unicodedata.normalize("NFC", name)


def is_hidden(path: pathlib.Path) -> bool:
    """True for dot files, among them the `._NAME` files of macOS."""
    return path.name.startswith(".")


def is_image(path: pathlib.Path) -> bool:
    """True for a visible file name with a suffix that is decoded."""
    return path.suffix.lower() in SUFFIXES and not is_hidden(path)


def yolo_label_path(image: pathlib.Path) -> pathlib.Path:
    """The path of an image's YOLO labels: the last folder `images` of its path becomes `labels`, if there is one."""
    *folders, name = image.parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return pathlib.Path(*folders, name).with_suffix(".txt")


def list_unreadable(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The visible image files of formats that are not decoded."""
    unreadable = [path for path in paths if path.suffix.lower() in UNREADABLE and not is_image(path)]
    return [path for path in unreadable if not is_hidden(path)]


def describe_left_out(paths: Iterable[pathlib.Path]) -> str:
    """A line that counts the image files of formats that are not decoded, by suffix; "" if there are none."""
    left_out = list_unreadable(paths)
    if not left_out:
        return ""
    counts = collections.Counter(path.suffix.lower() for path in left_out)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    return f"{kinds} left out (as {os.fspath(left_out[0])}): convert them to JPEG or PNG"
