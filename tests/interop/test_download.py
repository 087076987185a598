"""The downloader against a server on loopback that plays the hosts: redirects, pages, cuts, wrong bytes, absence."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from pfcn_jax.interop.download import RECORD, Cache, DownloadError, fetch
from pfcn_jax.interop.zoo import TABLE, Weights, find
from pfcn_jax.models.backbones.registry import known_backbones

ROOT = pathlib.Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Host(http.server.BaseHTTPRequestHandler):
    """The behavior is the path: /whole, /redirect, /page, /cut, /wrong, /slow, /gone, /busy."""

    def do_GET(self) -> None:
        server = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        kind = self.path.strip("/")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
        elif kind == "page":
            self._send(b"<!DOCTYPE html><title>Virus scan warning</title>", kind="text/html; charset=utf-8")
        elif kind == "page_as_bytes":
            self._send(b"\n <html><title>Quota exceeded</title></html>")
        elif kind == "gone":
            self.send_error(404)
        elif kind == "busy" and server.seen.count((self.path, None)) < 3:
            self.send_error(503)
        elif kind == "wrong":
            self._send(b"x" + CONTENT[1:])
        else:
            self._send(CONTENT, cut=kind == "cut" and len(server.seen) == 1, slow=kind == "slow")

    def _send(self, content: bytes, kind: str = "application/octet-stream", cut: bool = False, slow: bool = False):
        start = 0
        if (wanted := self.headers.get("Range")) and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for chunk in [body[: len(body) // 2], *([] if cut else [body[len(body) // 2 :]])]:
            self.wfile.write(chunk)
            if slow:
                time.sleep(0.3)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.seen, server.ranges = [], True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def entry_of(host, *paths: str, sha256: str = DIGEST) -> Weights:
    urls = tuple(f"http://127.0.0.1:{host.server_address[1]}/{path}" for path in paths)
    return Weights("toy", "toy.pth", urls, "CC0", sha256=sha256)


@pytest.mark.parametrize("path", ["whole", "redirect", "slow", "busy"])
def test_the_file_arrives_whole_and_is_fetched_once(host, cache, path, capsys):
    entry = entry_of(host, path)
    target = fetch(entry, cache, wait_seconds=0.0)
    assert target.read_bytes() == CONTENT
    requests = len(host.seen)
    assert fetch(entry, cache) == target and len(host.seen) == requests
    assert capsys.readouterr().err.count("license: CC0") == 1
    assert sorted(p.name for p in cache.downloads.iterdir()) == ["toy.pth", "toy.pth.lock"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(host, cache, ranges):
    """Where the server has no ranges it starts anew, and never appends a whole file to a half."""
    host.ranges = ranges
    assert fetch(entry_of(host, "cut"), cache, wait_seconds=0.0).read_bytes() == CONTENT
    assert [wanted for _, wanted in host.seen] == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_partial_file_of_a_killed_process_is_continued(host, cache):
    cache.downloads.mkdir(parents=True)
    (cache.downloads / "toy.pth.partial").write_bytes(CONTENT[:1000])
    assert fetch(entry_of(host, "whole"), cache).read_bytes() == CONTENT
    assert host.seen == [("/whole", "bytes=1000-")]


@pytest.mark.parametrize("path", ["page", "page_as_bytes"])
def test_a_warning_page_is_no_weights(host, cache, path):
    with pytest.raises(DownloadError, match="web page"):
        fetch(entry_of(host, path, sha256=""), cache, wait_seconds=0.0)
    assert not cache.path_of(entry_of(host)).exists() and not (cache.root / RECORD).exists()


def test_wrong_bytes_are_refused_and_not_kept(host, cache):
    with pytest.raises(DownloadError, match=DIGEST):
        fetch(entry_of(host, "wrong"), cache)
    assert [p.name for p in cache.downloads.iterdir()] == ["toy.pth.lock"]


def test_the_first_digits_of_a_digest_are_checked(host, cache):
    assert fetch(entry_of(host, "whole", sha256=DIGEST[:8]), cache).exists()
    with pytest.raises(DownloadError, match="00000000"):
        fetch(entry_of(host, "whole", sha256="0" * 8), cache)


def test_without_a_published_digest_the_first_use_is_recorded(host, cache, capsys):
    entry = entry_of(host, "whole", sha256="")
    target = fetch(entry, cache)
    assert DIGEST in capsys.readouterr().err
    assert json.loads((cache.root / RECORD).read_text())["toy.pth"]["sha256"] == DIGEST
    target.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(DownloadError, match="recorded on"):
        fetch(entry, cache)


def test_a_missing_file_names_address_digest_and_place(host, cache):
    entry = entry_of(host, "gone")
    with pytest.raises(DownloadError) as caught:
        fetch(entry, cache, wait_seconds=0.0)
    for part in (entry.urls[0], DIGEST, str(cache.path_of(entry)), "404"):
        assert part in str(caught.value)
    assert len(host.seen) == 1, "an answer that stays the same is not asked for again"


def test_the_next_address_is_tried(host, cache):
    entry = entry_of(host, "nothing", "whole")
    entry = dataclasses.replace(entry, urls=("http://127.0.0.1:9/nobody", entry.urls[1]))
    assert fetch(entry, cache, wait_seconds=0.0).read_bytes() == CONTENT


def test_offline_nothing_is_asked_for(host, cache, monkeypatch):
    monkeypatch.setenv("PFCN_OFFLINE", "1")
    entry = entry_of(host, "whole")
    with pytest.raises(DownloadError, match="PFCN_OFFLINE"):
        fetch(entry, cache)
    assert host.seen == []
    cache.path_of(entry).write_bytes(CONTENT)  # put there by hand
    assert fetch(entry, cache).read_bytes() == CONTENT


FETCH = """
import pathlib, sys
from pfcn_jax.interop.download import Cache, fetch
from pfcn_jax.models.backbones.registry import known_backbones
from pfcn_jax.interop.zoo import Weights
print(fetch(Weights("toy", "toy.pth", (sys.argv[1],), "CC0", sha256=sys.argv[2]), Cache(pathlib.Path(sys.argv[3]))))
"""


def test_two_processes_fetch_it_once(host, cache):
    entry = entry_of(host, "slow")
    command = [sys.executable, "-c", FETCH, entry.urls[0], DIGEST, str(cache.root)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].split() for process in both] == [
        [str(cache.path_of(entry)).encode()]
    ] * 2
    assert [process.returncode for process in both] == [0, 0]
    assert [path for path, _ in host.seen] == ["/slow"]


def test_the_table_is_sound():
    for name, entry in TABLE.items():
        assert name == entry.name and entry.license and bool(entry.urls) != bool(entry.package)
        assert all(url.startswith("https://") for url in entry.urls)
        assert set(entry.sha256) <= set("0123456789abcdef")
        assert entry.backbone in ("", *known_backbones())
    with pytest.raises(ValueError, match="panoptic-fcn-r50-3x"):
        find("panoptic-fcn-r50-3")
