"""Fonts for names in any script: Pillow's own for ASCII, for other characters one on this computer that has them.

Pillow's own font needs no file and is the same on every machine, but it has no glyph beyond ASCII, not even an umlaut.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import sys
import unicodedata

from PIL import ImageFont

from pfcn_jax.utils.stderr import print_lines

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_STYLES = ("bold", "italic", "oblique", "mono", "serif", "condensed", "black", "light", "thin", "medium", "math")
_PROBE_SIZE = 16  # pixels of the glyphs that are compared
_NO_GLYPH = "\U0010ffff"  # of no script: every font draws the mark of a missing glyph for it
_told: set[str] = set()


@functools.lru_cache(maxsize=64)
def _load(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def font(size: int, text: str = "") -> Font:
    """The font for a text, in pixels.

    Where no font has all its characters it is the one with most of them, and stderr says once which characters will be
    drawn as boxes.
    """
    special = frozenset(character for character in text if not character.isascii() and _is_drawn(character))
    return _load(_choose(special) if special else "", size)


def _is_drawn(character: str) -> bool:
    """False for spaces, control and format characters, which have no glyph."""
    return unicodedata.category(character)[0] not in "CZ"


@functools.cache
def _choose(characters: frozenset[str]) -> str:
    """The path of the font with most of the characters; "" for Pillow's own."""
    best, missing = "", _missing_in("", characters)
    for path in _font_files():
        if not missing:
            break
        without = _missing_in(path, characters)
        if len(without) < len(missing):
            best, missing = path, without
    new = "".join(sorted(missing - _told))
    _told.update(new)
    if new:
        print_lines(
            f"names with {new[:40]} are drawn as boxes: no font on this computer has these characters. Install one "
            "(Debian, Ubuntu: apt install fonts-noto-core fonts-noto-cjk; others: https://fonts.google.com/noto)"
        )
    return best


def _missing_in(path: str, characters: frozenset[str]) -> frozenset[str]:
    """The characters that a font has no glyph for."""
    try:
        face = _load(path, _PROBE_SIZE)
        if _glyph(face, "0") == _glyph(face, "1"):  # of symbols alone, or of last resort: a box for each script
            return characters
        box = _glyph(face, _NO_GLYPH)
        return frozenset(character for character in characters if _glyph(face, character) == box)
    except OSError:  # damaged, or of color bitmaps in another size
        return characters


def _glyph(face: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = face.getmask(character)
    return mask.size, bytes(mask)


@functools.cache
def _font_files() -> tuple[str, ...]:
    """The font files of this computer, plain upright ones of sans-serif families first."""
    files = {path for folder in _folders() for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES}

    def rank(path: pathlib.Path) -> tuple[int, int, str]:
        name = path.stem.lower()
        return sum(style in name.replace("sans", "") for style in _STYLES), len(name), str(path)

    return tuple(str(path) for path in sorted(files, key=rank))


def _folders() -> list[pathlib.Path]:
    """Where fonts lie: those that matplotlib brings (DejaVu), and those of the operating system and of the user."""
    home, folders = pathlib.Path.home(), []
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin:
        folders.append(pathlib.Path(matplotlib.origin).parent / "mpl-data/fonts/ttf")
    if sys.platform == "darwin":
        folders += [pathlib.Path("/System/Library/Fonts"), pathlib.Path("/Library/Fonts"), home / "Library/Fonts"]
    elif sys.platform == "win32":
        folders += [pathlib.Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    else:
        shared = pathlib.Path(os.environ.get("XDG_DATA_HOME", home / ".local/share")) / "fonts"
        folders += [pathlib.Path("/usr/share/fonts"), pathlib.Path("/usr/local/share/fonts"), home / ".fonts", shared]
    return [folder for folder in folders if folder.is_dir()]
