"""ArrayRecord shards on Google Cloud Storage: read from a bucket that a server on this machine plays."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from pfcn_jax.data.datasets.coco import CocoFolder
from tests.data.fixtures import write_tiny_coco

tfds_source = pytest.importorskip("pfcn_jax.data.datasets.tfds")

# A process of its own: the reader's endpoint and the table of file systems are global.
PROGRAM = """
import http.server, os, pathlib, re, sys, threading, urllib.parse
import numpy as np
import fsspec
from fsspec.implementations.local import LocalFileSystem

folder, root = pathlib.Path(sys.argv[1]), sys.argv[2]
requests = []

class Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = urllib.parse.unquote(re.search("/o/([^?]+)", self.path).group(1))
        data = (folder / name).read_bytes()
        requests.append(name)
        first, last = 0, len(data) - 1
        asked = re.fullmatch(r"bytes=(\\d*)-(\\d*)", self.headers.get("Range") or "bytes=0-")
        if asked.group(1):
            first, last = int(asked.group(1)), min(int(asked.group(2) or last), last)
        else:
            first = max(len(data) - int(asked.group(2)), 0)
        part = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *args):
        pass

class SmallFiles(LocalFileSystem):
    protocol = ("gcs", "gs")

    def __init__(self, **options):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        return str(folder / path.removeprefix("gs://bucket/")) if path.startswith("gs://") else path

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
fsspec.register_implementation("gcs", SmallFiles, clobber=True)
fsspec.register_implementation("gs", SmallFiles, clobber=True)

from pfcn_jax.data.registry import list_splits, open_source
assert list_splits("tfds", "gs://bucket/" + root) == ["train"]
remote, local = open_source("tfds", "gs://bucket/" + root, "train"), open_source("tfds", folder / root, "train")
assert len(remote) == len(local) == 3
for index in (2, 0, 1):
    for field in ("image", "segment_map", "class_id"):
        np.testing.assert_array_equal(getattr(remote[index], field), getattr(local[index], field))
assert requests and all("array_record" in name for name in requests), requests
print("read", len(requests), "parts of", sorted(set(requests)))
"""


def test_shards_in_a_bucket_give_the_same_examples(tmp_path):
    write_tiny_coco(tmp_path / "tiny", splits={"train": 3})
    prepared = tfds_source.prepare(tmp_path / "bucket", {"train": CocoFolder(tmp_path / "tiny", "train")})
    root = prepared.relative_to(tmp_path / "bucket")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "bucket"), os.fspath(root)],
        capture_output=True, text=True, timeout=120, cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "parts of" in ran.stdout
