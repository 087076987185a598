"""Names in any script: a font that has their characters, or one message about those that no font has."""

from __future__ import annotations

import pathlib

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from pfcn_jax.viz import fonts, labels


@pytest.fixture(autouse=True)
def nothing_remembered():
    for function in (fonts._choose, fonts._font_files):
        function.cache_clear()
    fonts._told.clear()
    yield
    for function in (fonts._choose, fonts._font_files):
        function.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """The only folder with fonts on this computer."""
    monkeypatch.setattr(fonts, "_folders", lambda: [tmp_path])
    return tmp_path


def write_font(path: pathlib.Path, characters: str) -> None:
    """A font in which each character is a triangle of its own height; missing ones are a square."""

    def glyph(points):
        pen = TTGlyphPen(None)
        pen.moveTo(points[0])
        for point in points[1:]:
            pen.lineTo(point)
        pen.closePath()
        return pen.glyph()

    names = {character: f"u{ord(character):04X}" for character in characters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(character): name for character, name in names.items()})
    shapes = {".notdef": glyph([(0, 0), (0, 900), (900, 900), (900, 0)])}
    for row, name in enumerate(names.values()):
        shapes[name] = glyph([(0, 0), (300, 200 + 600 * row // len(names)), (500, 0)])
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in shapes})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_ascii_needs_no_file(monkeypatch):
    monkeypatch.setattr(fonts, "_folders", lambda: pytest.fail("searched for fonts"))
    assert fonts.font(20, "traffic light 0.87").getname()[0] == "Aileron"


def test_a_font_with_the_characters_is_found(folder, capsys):
    write_font(folder / "Other.ttf", "01ж")
    write_font(folder / "Cat.ttf", "0123456789.猫")
    (folder / "Broken.ttf").write_bytes(b"no font")
    assert fonts.font(20, "猫 0.87").getname()[0] == "Cat"
    assert fonts.font(20, "ж").getname()[0] == "Other"
    assert fonts.font(20, "猫\u200b\n").getname()[0] == "Cat"
    assert capsys.readouterr().err == ""
    assert fonts.font(20, "猫ж").getname()[0] in ("Cat", "Other")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_characters_that_no_font_has_are_named_once(folder, capsys):
    write_font(folder / "Boxes.ttf", "ж")  # without digits: each of the others would be a box
    for name in ("猫 0.87", "猫 0.11", "犬"):
        assert fonts.font(20, name).getname()[0] == "Aileron"
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" are drawn as boxes")[0] for line in said] == ["names with 猫", "names with 犬"]
    assert "fonts-noto-cjk" in said[0]


def test_the_fonts_of_matplotlib_are_enough_for_europe(capsys):
    pytest.importorskip("matplotlib")
    assert fonts.font(20, "кошка γάτα Straße Łódź").getname()[0] != "Aileron"
    assert capsys.readouterr().err == ""


def test_a_label_is_as_wide_as_its_text_in_the_font_that_draws_it(folder):
    write_font(folder / "Cat.ttf", "01猫")
    assert labels.label_size("猫猫猫", 20)[1] == 3 * 20 + 2 * round(labels.PADDING * 20)
