"""State dicts that we write: read back equal, the same bytes each time, complete or not there at all."""

from __future__ import annotations

import pickletools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from pfcn_jax.interop.reader import read_file, read_tensors
from pfcn_jax.interop.writer import write_safetensors, write_state_dict

TYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8)
# What PyTorch's own unpickler for weights_only=True knows and we use.
OPCODES = {"PROTO", "EMPTY_DICT", "BINUNICODE", "GLOBAL", "EMPTY_TUPLE", "REDUCE", "MARK", "BININT", "LONG1", "TUPLE",
           "BINPERSID", "NEWFALSE", "SETITEM", "SETITEMS", "STOP"}  # fmt: skip
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}


def _tensors():
    tensors = {np.dtype(kind).name: np.arange(6).reshape(2, 3).astype(kind) for kind in TYPES}
    tensors |= {"yes": np.array([True, False]), "count": np.array(7), "none": np.zeros((0, 4), np.float32)}
    tensors |= {"turned": tensors["float32"].T, "swapped": tensors["float32"].astype(">f4"), "é.weight": np.ones(1)}
    return tensors


def _assert_equal(read, written):
    assert set(read) == set(written)
    for name, array in written.items():
        assert read[name].dtype == np.dtype(array.dtype.name)  # in this machine's byte order
        assert read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("wrap", ["model", "state_dict", None])
def test_state_dict_there_and_back(tmp_path, wrap):
    path = tmp_path / "weights.pth"
    write_state_dict(path, _tensors(), wrap=wrap)
    content = read_file(path)
    _assert_equal(content if wrap is None else content[wrap], _tensors())
    assert wrap is None or list(content) == [wrap]
    assert list(read_tensors(path)) == list(_tensors())


def test_safetensors_there_and_back(tmp_path):
    write_safetensors(tmp_path / "weights.safetensors", _tensors())
    _assert_equal(read_tensors(tmp_path / "weights.safetensors"), _tensors())


def test_only_what_pytorch_loads_as_plain_weights(tmp_path):
    path = tmp_path / "weights.pth"
    write_state_dict(path, _tensors())
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[0] == "archive/data.pkl"
        assert {"archive/version", "archive/byteorder"} < set(archive.namelist())
        assert archive.read("archive/byteorder") == b"little"
        assert all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
        steps = list(pickletools.genops(archive.read("archive/data.pkl")))
    assert {opcode.name for opcode, _, _ in steps} <= OPCODES
    named = {argument for opcode, argument, _ in steps if opcode.name == "GLOBAL"}
    assert {name for name in named if not name.endswith("Storage")} == GLOBALS


@pytest.mark.parametrize("write", [write_state_dict, write_safetensors])
def test_same_bytes_and_nothing_left_aside(tmp_path, write):
    first, second = tmp_path / "a", tmp_path / "b"
    write(first, _tensors())
    write(second, _tensors())
    assert first.read_bytes() == second.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize("write", [write_state_dict, write_safetensors])
def test_a_failure_leaves_the_old_file(tmp_path, write, monkeypatch):
    path = tmp_path / "weights"
    write(path, {"x": np.ones(2)})
    before = path.read_bytes()
    with pytest.raises(TypeError, match="'y': complex64"):
        write(path, {"y": np.ones(2, np.complex64)})

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write(path, {"x": np.zeros(2)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_tensors(tmp_path):
    write_state_dict(tmp_path / "weights.pth", {})
    assert read_file(tmp_path / "weights.pth") == {"model": {}}
