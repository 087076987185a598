"""`Store`: the same behavior for folders, file:// and what fsspec opens; files appear complete or not at all."""

from __future__ import annotations

import uuid

import pytest

from pfcn_jax.data.example import DataError
from pfcn_jax.data.store import Store


@pytest.fixture(params=["folder", "file://", "memory://"])
def where(request, tmp_path) -> str:
    if request.param == "memory://":
        pytest.importorskip("fsspec", reason="fsspec opens memory://")
        return f"memory://{uuid.uuid4().hex}/store"
    return f"{request.param.removeprefix('folder')}{tmp_path}/store"


def test_files_are_listed_read_and_replaced(where):
    store = Store(where)
    assert not store.exists() and list(store.list()) == []
    store.put("a/x.jpg", b"one")
    store.put("a/deep/er/x.png.gz", b"two two")  # no suffix is taken for a compression
    store.put("b.jpg", b"")
    assert store.exists() and store.exists("a") and store.exists("a/x.jpg") and not store.exists("a/x")
    assert sorted(store.list()) == [("a/deep/er/x.png.gz", 7), ("a/x.jpg", 3), ("b.jpg", 0)]
    assert sorted(store.list("a")) == [("a/deep/er/x.png.gz", 7), ("a/x.jpg", 3)]
    assert sorted(store.list(skip=store.path("a"))) == [("b.jpg", 0)]
    store.put("a/x.jpg", b"one more")
    assert Store(where).read("a/x.jpg") == b"one more"
    with pytest.raises(FileNotFoundError):
        store.read("a/nothing")


def test_files_and_folders_are_removed_and_made_again(where, tmp_path):
    store = Store(where)
    for name in ("a/x", "a/y", "b/z"):
        store.put(name, b"0")
    store.remove("a/x"), store.remove("a/x"), store.remove_folder("b"), store.remove_folder("b")
    assert [name for name, _ in store.list()] == ["a/y"]
    store.put("b/z", b"1")
    (tmp_path / "large").write_bytes(bytes(9 * 2**20))  # more than one piece
    store.put_file("b/large", tmp_path / "large")
    assert store.read("b/z") == b"1" and store.read("b/large") == bytes(9 * 2**20)


class Interrupted(Exception):
    """Stands for whatever stops a writer."""


class BrokenPipe:
    """A file system that fails when a file is nearly written."""

    def __init__(self, files):
        self._files = files

    def __getattr__(self, name):
        return getattr(self._files, name)

    def move(self, source, target):
        raise Interrupted


def test_a_write_that_fails_leaves_the_file_as_it_was(where):
    store = Store(where)
    store.put("a/x", b"before")
    store._files = BrokenPipe(store._files)
    for name in ("a/x", "a/new"):
        with pytest.raises(Interrupted):
            store.put(name, b"after")
    assert list(Store(where).list()) == [("a/x", 6)]


def test_what_cannot_be_opened_is_said_without_secrets():
    with pytest.raises(DataError, match=r"^nosuch://bucket/x: cannot be opened"):
        Store("nosuch://key:secret@bucket/x?option=1")


def test_only_stores_on_one_file_system_can_be_compared(tmp_path):
    assert Store(str(tmp_path / "a")).same_files(Store(f"file://{tmp_path}/b"))
    assert not Store(str(tmp_path)).same_files(Store("memory://x"))
