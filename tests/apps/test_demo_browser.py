"""The demo in a real browser: choose an image, hover, drag sliders, drop a broken file."""

from __future__ import annotations

import base64

import pytest
from PIL import Image

from tests.apps import hostile
from tests.apps.demo_parts import scene
from tests.apps.test_demo import serving, session
from tests.support import browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.find_programs() is None, reason="needs chromium and chromedriver (chromium-driver)"),
]

_DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], arguments[1]));
const drop = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
document.getElementById("drop").dispatchEvent(drop);
"""
_MOVE = """
const input = document.getElementById(arguments[0]);
input.value = arguments[1];
input.dispatchEvent(new Event("input", {bubbles: true}));
"""


def fused(page) -> int:
    return int(page.run("return document.querySelectorAll('#kernels b')[1].textContent"))


def drop(page, data: bytes, name: str) -> None:
    page.run(_DROP, base64.b64encode(data).decode(), name)


def test_a_visit(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    with serving(session()) as port, browser.browsing(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait("document.body.dataset.ready")
        assert page.run("return document.querySelectorAll('#sliders input').length") == 8

        page.choose_file("#file", tmp_path / "scene.png")
        page.wait("document.querySelectorAll('#segments tr').length > 0 && !asking")
        assert "segments" in page.run("return document.getElementById('status').textContent")

        page.run(_MOVE, "fusion_threshold", "0.5")
        page.wait("!asking && !changed")
        few = fused(page)
        page.run(_MOVE, "fusion_threshold", "1.01")
        page.wait("!asking && !changed")
        assert few < fused(page) == int(page.run("return document.querySelector('#kernels b').textContent"))
        page.run("document.getElementById('reset').click()")
        page.wait("!asking && !changed")

        # Over a pixel of the first segment: its name and score, and its row of the table.
        place = page.run("""
            const box = document.getElementById("image").getBoundingClientRect();
            const scale = Math.min(box.width / current.width, box.height / current.height);
            const pixel = answer.map.indexOf(answer.segments[0].id);
            const left = box.left + (box.width - scale * current.width) / 2;
            const top = box.top + (box.height - scale * current.height) / 2;
            const row = Math.floor(pixel / current.width), column = pixel % current.width;
            return [left + scale * (column + 0.5), top + scale * (row + 0.5)];
        """)
        page.move_mouse(*(round(value) for value in place))
        page.wait("!document.getElementById('tip').hidden")
        first = page.run("return answer.segments[0]")
        tip = page.run("return document.getElementById('tip').textContent")
        assert first["name"] in tip and f"{first['score']:.2f}" in tip
        assert page.run("return document.querySelector('tr.on').dataset.id") == str(first["id"])

        drop(page, b"no image at all", "<b>bad</b>.png")
        page.wait("!document.getElementById('error').hidden")
        message = page.run("return document.getElementById('error').textContent")
        assert message.startswith("<b>bad</b>.png: not an image")
        drop(page, bytes(hostile.MAX_BYTES + 1), "large.png")
        page.wait("document.getElementById('error').textContent.startsWith('large.png')")

        drop(page, hostile.encoded(hostile.draw(), "JPEG"), "good.jpg")
        page.wait(
            "document.getElementById('error').hidden && document.getElementById('image').alt === 'good.jpg' && answer"
        )
        page.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as shot:
            assert shot.width > 1000 and len(shot.convert("RGB").getcolors(2**24)) > 500  # something is drawn
