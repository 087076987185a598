"""The demo: two hundred bad uploads, its limits over HTTP, and what a page may ask."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
import zlib

import numpy as np
import pytest

from pfcn_jax import main as front_door
from pfcn_jax.apps.demo.command import LOOPBACK, check_limits
from pfcn_jax.apps.demo.session import DemoSession, check_thresholds
from pfcn_jax.apps.demo.uploads import Limits
from pfcn_jax.errors import UserError
from tests.apps import hostile
from tests.apps.demo_parts import scene, tiny_predictor

LIMITS = Limits(hostile.MAX_BYTES, hostile.MAX_PIXELS)


def session(**options) -> DemoSession:
    return DemoSession(tiny_predictor(), LIMITS, **options)


def good_upload() -> bytes:
    return hostile.encoded(hostile.draw(), "PNG")


@pytest.mark.slow
def test_two_hundred_bad_uploads_get_a_clear_answer():
    demo, answers = session(), {"taken": 0, "refused": 0}
    uploads = hostile.uploads()
    assert len(uploads) >= 200
    for name, data, expected in uploads:
        try:
            answer = demo.add(data, name)
        except UserError as error:
            message = str(error)
            assert expected != "" and (expected is None or expected in message), (name[:60], message)
            assert message.isprintable() and len(message) < 250 and ": " in message
            answers["refused"] += 1
        else:
            assert not expected, name[:60]
            assert {answer["height"], answer["width"]} == {40, 48} and answer["image"].startswith("data:image/webp")
            answers["taken"] += 1
    assert answers["taken"] > 20 and answers["refused"] > 120
    assert demo.segment(demo.add(good_upload(), "good.png")["key"], {})["segments"]


def test_segments_are_those_of_the_prediction():
    demo, predictor = session(), tiny_predictor()
    added = demo.add(good_upload(), "a.png")
    image = np.asarray(hostile.draw())
    answer = demo.segment(added["key"], {"fusion_threshold": 0.7})
    prediction, counts = predictor.segment(predictor.encode(image), fusion_threshold=0.7)
    ids = np.frombuffer(zlib.decompress(base64.b64decode(answer["ids"])), "<u2").reshape(40, 48)
    valid = prediction.panoptic.valid
    assert [segment["area"] for segment in answer["segments"]] == prediction.panoptic.area[valid].tolist()
    assert np.unique(ids[ids > 0]).tolist() == [segment["id"] for segment in answer["segments"]]
    assert answer["kernels"]["picked"] == counts.picked >= answer["kernels"]["fused"] >= answer["kernels"]["placed"]


def test_large_images_are_shrunk_and_old_ones_forgotten():
    demo = session(long_side=64, kept=2)
    first = demo.add(hostile.encoded(hostile.draw(size=(128, 96)), "PNG"), "first")
    assert (first["height"], first["width"]) == (48, 64)
    others = [demo.add(good_upload(), "x")["key"] for _ in range(2)]
    with pytest.raises(UserError, match="upload it again"):
        demo.segment(first["key"], {})
    assert all(demo.segment(key, {})["segments"] is not None for key in others)


@pytest.mark.parametrize(
    "values",
    [[], "x", {"no_such": 1}, {"fusion_threshold": "0.5"}, {"fusion_threshold": float("nan")}, {"merge_score": 1.5},
     {"min_stuff_area": -1}, {"mask_threshold": True}, {"min_score": None}, {"x" * 9000: 1}],
)  # fmt: skip
def test_thresholds_that_are_none(values):
    with pytest.raises(UserError) as error:
        check_thresholds(values)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("flags", [(0.0, 40.0), (-1.0, 40.0), (20.0, 0.0), (20.0, 1e9), (float("nan"), 1.0)])
def test_limits_that_are_none(flags):
    with pytest.raises(UserError, match="must be above 0"):
        check_limits(*flags)


def test_the_verb_checks_its_flags_before_it_loads(capsys):
    pytest.importorskip("starlette", reason="pip install -r requirements-demo.txt")
    pytest.importorskip("uvicorn", reason="pip install -r requirements-demo.txt")
    for flags, message in ((["--max-mib", "0"], "--max-mib"), (["--long-side", "3"], "--long-side"), ([], "nowhere")):
        assert front_door.main(["demo", "--checkpoint", "nowhere", *flags]) == 2
        assert message in capsys.readouterr().err


@contextlib.contextmanager
def serving(demo: DemoSession):
    """The real application on a free port of the loopback; gives the port."""
    uvicorn = pytest.importorskip("uvicorn", reason="pip install -r requirements-demo.txt")
    pytest.importorskip("starlette", reason="pip install -r requirements-demo.txt")
    from pfcn_jax.apps.demo.server import make_app

    app = make_app(demo, allowed_hosts=LOOPBACK)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


BYTES, JSON = {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/json"}


def ask(port, method, path, body=None, headers=None):
    """(status, parsed answer or text, headers)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read()
        value = json.loads(text) if "json" in response.headers.get("Content-Type", "") else text.decode()
        return response.status, value, response.headers
    finally:
        connection.close()


def test_over_http():
    with serving(session()) as port:
        status, page, headers = ask(port, "GET", "/")
        assert status == 200 and "/demo.js" in page and "default-src 'none'" in headers["Content-Security-Policy"]
        assert ask(port, "GET", "/demo.js")[0] == ask(port, "GET", "/demo.css")[0] == 200
        info = ask(port, "GET", "/api/info")[1]
        assert info["max_bytes"] == LIMITS.max_bytes and len(info["sliders"]) == 8

        status, added, _ = ask(port, "POST", "/api/images?name=a.png", good_upload(), BYTES)
        assert status == 200
        body = json.dumps({"key": added["key"], "thresholds": {"fusion_threshold": 0.8}})
        status, answer, _ = ask(port, "POST", "/api/segments", body, JSON)
        assert status == 200 and answer["segments"]

        refused = [
            (("POST", "/api/images", bytes(LIMITS.max_bytes + 1), BYTES), 413, "more than"),
            (("POST", "/api/images", good_upload(), {"Content-Type": "text/plain"}), 415, "content type"),
            (("POST", "/api/images", b"", BYTES), 400, "empty"),
            (("POST", "/api/segments", b"{", JSON), 400, "not JSON"),
            (("POST", "/api/segments", b"[" * 60_000, JSON), 400, "not JSON"),
            (("POST", "/api/segments", b"[]", JSON), 400, "object"),
            (("POST", "/api/segments", bytes(70_000), JSON), 413, "too long"),
            (("POST", "/api/segments", b'{"key": ["a"]}', JSON), 400, "upload it again"),
            (("POST", "/api/segments", b'{"key": "a", "thresholds": {"merge_score": 7}}', JSON), 400, "merge_score"),
        ]
        for request, expected, message in refused:
            status, answer, _ = ask(port, *request)
            assert status == expected and message in answer["error"], (request[1:2], status, answer)
        assert ask(port, "GET", "/api/info", headers={"Host": "evil.example"})[0] == 400
        assert ask(port, "GET", "/api/images")[0] == 405 and ask(port, "GET", "/../etc/passwd")[0] == 404


def test_bodies_without_an_honest_length_are_bounded_too():
    def endless():
        for _ in range(100):
            yield bytes(64 * 1024)

    with serving(session()) as port:
        with contextlib.suppress(ConnectionError, http.client.HTTPException):  # closed while we were still sending
            status, answer, _ = ask(port, "POST", "/api/images?name=x", endless(), BYTES)
            assert status == 413 and "more than" in answer["error"]
        for name, data, _ in hostile.uploads()[::20]:
            path = "/api/images?name=" + "".join(f"%{byte:02x}" for byte in name[:200].encode())
            status, answer, _ = ask(port, "POST", path, data, BYTES)
            assert (status == 200) or (status in (400, 413) and answer["error"])
        assert ask(port, "POST", "/api/images?name=good", good_upload(), BYTES)[0] == 200


def test_a_scene_is_answered_in_words():
    added = session()
    key = added.add(hostile.encoded(hostile.Image.fromarray(scene()), "PNG"), "scene.png")["key"]
    names = {segment["name"] for segment in added.segment(key, {"stuff_threshold": 0.0})["segments"]}
    assert names <= set(added.info()["classes"]) and names
