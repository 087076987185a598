"""Files appear complete or not at all."""

from __future__ import annotations

import json

import pytest

from pfcn_jax.utils.atomic import atomic_path, write_bytes, write_json, write_text


def test_an_error_in_the_block_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "folder" / "video.mp4"
    write_text(path, "before")
    with pytest.raises(RuntimeError, match="halfway"), atomic_path(path) as temporary:
        temporary.write_text("after")
        assert temporary.suffix == ".mp4" and temporary.parent == path.parent  # encoders choose by suffix
        raise RuntimeError("halfway")
    assert path.read_text() == "before" and list(path.parent.iterdir()) == [path]


def test_a_disk_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"before")

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(path, b"after")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_json_has_no_numbers_that_json_does_not_know(tmp_path):
    write_json(tmp_path / "x.json", {1: [float("nan"), 1.5], "b": (float("inf"), True)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"1": [None, 1.5], "b": [None, True]}
    assert (tmp_path / "x.json").read_text().endswith("}\n")
