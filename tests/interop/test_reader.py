"""Files of weights: what is read from each kind, and that nothing in them is run or read outside its bounds."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from pfcn_jax.errors import UserError
from pfcn_jax.interop.reader import WeightsError, read_file, read_tensors, read_weights
from tests.interop import pickled as make

VALUES = np.arange(24, dtype=np.float32)
ON_PURPOSE = "^(?!.*damaged)"  # refused by a check, not by an accident in a parser
RAW = {"0": VALUES.tobytes()}
REFERENCE = make.storage("0", "float32", 24)
WHOLE = make.tensor(REFERENCE, 0, (24,), (1,))


def _zip(tmp_path, body, storages=RAW, **options):
    return make.torch_zip(tmp_path / "weights.pth", body, storages, **options)


def _pickle(tmp_path, body):
    path = tmp_path / "weights.pkl"
    path.write_bytes(make.whole(body))
    return path


def _refused(path, reason=None, read=read_tensors):
    with pytest.raises(WeightsError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert isinstance(caught.value, UserError)


# ------------------------------------------------------------------------------------------------------- what is read
def test_views_of_one_storage(tmp_path):
    views = {
        "rows": make.tensor(REFERENCE, 6, (2, 3), (6, 2)),
        "transposed": make.tensor(REFERENCE, 0, (6, 4), (1, 6)),
        "single": make.tensor(REFERENCE, 23, (), ()),
        "spread": make.tensor(REFERENCE, 5, (3, 2), (0, 1)),
        "empty": make.tensor(REFERENCE, 24, (0, 3), (3, 1)),
        "parameter": make.call(make.name("torch._utils", "_rebuild_parameter"), WHOLE, b"\x88", b"N"),
    }
    tensors = read_tensors(_zip(tmp_path, make.dictionary(views)))
    grid = VALUES.reshape(4, 6)
    wanted = {"rows": grid[1:3, ::2][:, :3], "transposed": grid.T, "single": VALUES[23], "parameter": VALUES}
    wanted |= {"spread": np.array([[5, 6]] * 3, np.float32), "empty": np.zeros((0, 3), np.float32)}
    assert list(tensors) == list(views)
    for key, array in wanted.items():
        assert tensors[key].dtype == np.float32
        np.testing.assert_array_equal(tensors[key], array)


@pytest.mark.parametrize("order", ["little", "big"])
def test_byte_orders_and_truth_values(tmp_path, order):
    sign = "<" if order == "little" else ">"
    body = make.dictionary(
        {"x": WHOLE, "yes": make.tensor(make.storage("1", "bool", 3), 0, (3,), (1,)),
         "n": make.tensor(make.storage("2", "int64", 2), 0, (2,), (1,))}
    )  # fmt: skip
    storages = {"0": VALUES.astype(f"{sign}f4").tobytes(), "1": b"\0\1\7",
                "2": np.array([-1, 2**40], f"{sign}i8").tobytes()}  # fmt: skip
    tensors = read_tensors(_zip(tmp_path, body, storages, order=order.encode()))
    np.testing.assert_array_equal(tensors["x"], VALUES)
    np.testing.assert_array_equal(tensors["yes"], np.array([False, True, True]))
    np.testing.assert_array_equal(tensors["n"], np.array([-1, 2**40]))


def test_state_dict_with_attributes_beside_an_optimiser(tmp_path):
    state = make.call(make.name("collections", "OrderedDict"))
    state += b"(" + make.text("module.a") + WHOLE + make.text("module.b") + WHOLE + b"u"
    state += make.dictionary({"_metadata": b"}"}) + b"b"  # what Module.state_dict leaves on its dictionary
    lost = make.tensor(make.storage("gone", "float32", 24), 0, (24,), (1,))
    body = make.dictionary({"optimizer": make.dictionary({"momentum": lost}), "model": state, "iteration": b"K\x05"})
    path = _zip(tmp_path, body)
    weights = read_weights(path)
    assert list(weights.tensors) == ["a", "b"]
    assert weights.metadata == {"iteration": 5}
    _refused(path, "no 'data/gone'", read_file)


def test_places_of_state_dicts_in_their_order(tmp_path):
    first, second = make.tensor(REFERENCE, 0, (1,), (1,)), make.tensor(REFERENCE, 1, (1,), (1,))
    both = {"state_dict": make.dictionary({"x": second}), "model": make.dictionary({"x": first})}
    assert read_tensors(_zip(tmp_path, make.dictionary(both)))["x"] == 0
    both["model"] = make.dictionary({"no": b"N"})
    assert read_tensors(_zip(tmp_path, make.dictionary(both)))["x"] == 1
    mixed = make.dictionary({"module.x": first, "y": second})
    assert list(read_tensors(_zip(tmp_path, mixed))) == ["module.x", "y"]
    _refused(_zip(tmp_path, make.dictionary({"model": b"}"})), "no state dict")


def test_legacy_file(tmp_path):
    storages = {"77": VALUES, "5": np.array([True, False])}
    body = make.dictionary(
        {"x": make.tensor(make.storage("77", "float32", 24, legacy=True), 2, (2, 2), (6, 1)),
         "yes": make.tensor(make.storage("5", "bool", 2, legacy=True), 0, (2,), (1,))}
    )  # fmt: skip
    path = make.torch_legacy(tmp_path / "old.pth", body, storages)
    tensors = read_tensors(path)
    np.testing.assert_array_equal(tensors["x"], np.array([[2, 3], [8, 9]], np.float32))
    np.testing.assert_array_equal(tensors["yes"], storages["5"])
    data = path.read_bytes()
    for end in range(9, len(data), 7):
        path.write_bytes(data[:end])
        _refused(path)
    _refused(make.torch_legacy(path, body, storages, protocol=1002), "magic number or protocol")
    path.write_bytes(pickle.dumps(12345, 2))
    _refused(path, "magic number or protocol")


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays(tmp_path, protocol):
    arrays = {
        "x": VALUES.reshape(4, 6), "t": VALUES.reshape(4, 6).T, "big": VALUES.astype(">f8"), "half": np.ones(2, "f2"),
        "n": np.array([-5], np.int64), "yes": np.array([True]), "one": np.array(3.0), "scalar": np.float32(2.5),
        "empty": np.zeros((0, 2), np.uint8), "mixed": np.zeros((2, 3, 4), np.int32).transpose(1, 0, 2),
    }  # fmt: skip
    content = {"model": arrays, "__author__": "someone", "matching_heuristics": True}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    weights = read_weights(path)
    assert weights.metadata == {"__author__": "someone", "matching_heuristics": True}
    assert list(weights.tensors) == list(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(weights.tensors[key], array)
        assert weights.tensors[key].dtype == array.dtype.newbyteorder("=")


def test_pickle_of_python_2(tmp_path):
    """Byte strings where Python 3 has texts and bytes, `numpy.core`, and an OrderedDict of pairs."""
    raw = b"U\x08" + np.array([1.5, 200.25], "<f4").tobytes()
    dtype = make.call(make.name("numpy", "dtype"), b"U\x02f4", b"K\x00", b"K\x01")
    dtype += make.tuple_of(b"K\x03", b"U\x01<", b"N", b"N", b"N", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\xff", b"K\x00")
    array = make.call(make.name("numpy.core.multiarray", "_reconstruct"), make.name("numpy", "ndarray"), b"K\0\x85",
                      b"U\x01b")  # fmt: skip
    array += make.tuple_of(b"K\x01", make.tuple_of(b"K\x02"), dtype + b"b", b"\x89", raw) + b"b"
    pairs = b"](](U\x07conv1_w" + array + b"ee"
    body = b"}U\x05blobs" + make.call(make.name("collections", "OrderedDict"), pairs) + b"s"
    tensors = read_tensors(_pickle(tmp_path, body))
    np.testing.assert_array_equal(tensors["conv1_w"], np.array([1.5, 200.25], np.float32))


def test_safetensors_with_bfloat16(tmp_path):
    values = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, "__metadata__": {"from": "a test"}}
    text = json.dumps(header).encode()
    path = tmp_path / "any.bin"
    path.write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes())
    weights = read_weights(path)
    assert weights.metadata == {"from": "a test"}
    assert weights.tensors["x"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(weights.tensors["x"], values)
    path.write_bytes(struct.pack("<Q", len(text)) + text + values.tobytes()[:-1])
    _refused(path, "damaged")


def test_shared_containers_stay_shared_and_loops_are_refused(tmp_path):
    shared = make.dictionary({"x": WHOLE}) + b"q\x01"
    content = read_file(_zip(tmp_path, b"](" + shared + b"h\x01e"))
    assert content[0] is content[1]
    loop = _pickle(tmp_path, b"}q\x01" + make.text("model") + b"h\x01s")
    _refused(loop, "no state dict")
    _refused(loop, "inside itself", read_file)


# --------------------------------------------------------------------------------------------------- what is not run
class _Reduces:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _reference(kind: bytes, key: bytes) -> bytes:
    return make.tuple_of(make.text("storage"), kind, key, key, b"K\1") + b"Q"


def _hostile(sentinel) -> dict[str, bytes]:
    shell = make.text(f"touch {sentinel}")
    code = make.text(f"open({str(sentinel)!r}, 'w').close()")
    getattr_chain = make.call(make.name("builtins", "getattr"), make.name("os", "path"), make.text("os"))
    empty_array = make.call(make.name("numpy.core.multiarray", "_reconstruct"))
    slots = b"N" + make.dictionary({"raw": shell, "build": shell}) + b"\x86b"
    dtype = make.name("numpy", "dtype")
    return {
        "global": make.call(make.name("os", "system"), shell),
        "posix": make.call(make.name("posix", "system"), shell),
        "stack_global": make.text("os") + make.text("system") + b"\x93" + make.tuple_of(shell) + b"R",
        "eval": make.call(make.name("builtins", "eval"), code),
        "exec": make.call(make.name("__builtin__", "exec"), code),
        "nested": b"](" + make.dictionary({"model": make.call(make.name("os", "system"), shell)}) + b"e",
        "getattr": make.call(getattr_chain, shell),
        "dotted": make.text("collections") + make.text("OrderedDict.fromkeys") + b"\x93" + b")R",
        "dotted module": make.text("torch._utils") + make.text("sys.modules") + b"\x93",
        "numpy.load": make.call(make.name("numpy", "load"), shell),
        "torch.load": make.call(make.name("torch", "load"), shell),
        "own": make.call(make.name("pfcn_jax.interop.reader", "read_file"), shell),
        "partial": make.call(make.name("functools", "partial"), make.name("os", "system"), shell),
        "inst": b"(" + shell + b"ios\nsystem\n",
        "obj": b"(" + make.name("os", "system") + shell + b"o",
        "newobj": make.name("collections", "OrderedDict") + b")\x81",
        "newobj_ex": make.name("torch", "Size") + b")}\x92",
        "extension": b"\x82\x01", "extension 2": b"\x83\x01\x00", "extension 4": b"\x84\x01\x00\x00\x00",
        "buffer": b"\x97", "readonly buffer": b"]\x98",
        "call of text": make.call(shell, shell),
        "call of dtype name": make.call(make.name("torch", "FloatStorage"), shell),
        "call of array type": make.call(make.name("numpy", "ndarray"), shell),
        "call of result": make.call(make.call(make.name("collections", "OrderedDict")), shell),
        "build on a name": make.name("collections", "OrderedDict") + make.dictionary({"build": shell}) + b"b",
        "build slots on a name": make.name("collections", "OrderedDict") + slots,
        "build on a tensor": WHOLE + make.dictionary({"__class__": shell}) + b"b",
        "build slots on a tensor": WHOLE + slots,
        "build slots on an array": empty_array + slots,
        "build slots on a dictionary": b"}" + slots,
        "build on a list": b"]" + make.dictionary({"append": shell}) + b"b",
        "text persistent id": f"Ptouch {sentinel}\n".encode(),
        "persistent module": make.tuple_of(make.text("module"), make.name("torch", "Size"), shell, shell) + b"Q",
        "persistent callable": _reference(make.name("os", "system"), shell),
        "persistent other type": _reference(make.name("torch", "Size"), shell),
        "persistent text": shell + b"Q",
        "object array": make.call(dtype, make.text("O8"), b"K\0", b"K\1"),
        "record array": make.call(dtype, make.text("V8"), b"K\0", b"K\1"),
        "dtype with fields": make.call(dtype, make.text("f4"), b"K\0", b"K\1")
        + make.tuple_of(b"K\3", make.text("<"), b"N", shell, b"}", b"K\4", b"K\1", b"K\0") + b"b",
        "unknown bytes": make.call(make.name("_codecs", "encode"), shell, make.text("unicode_escape")),
        "many bytes": make.call(make.name("builtins", "bytes"), make.number(2**40)),
        "unhashable depth": b"}" + b")" + b"\x85" * 100 + b"Ns",
    }  # fmt: skip


@pytest.mark.parametrize("case", list(_hostile("x")))
@pytest.mark.parametrize("container", ["zip", "pickle", "legacy"])
def test_hostile_pickles_are_refused_and_not_run(tmp_path, case, container):
    sentinel = tmp_path / "was_run"
    body = make.dictionary({"model": _hostile(sentinel)[case], "x": WHOLE})
    if container == "zip":
        path = _zip(tmp_path, body)
    elif container == "pickle":
        path = _pickle(tmp_path, body)
    else:
        path = make.torch_legacy(tmp_path / "old.pth", body, {"0": VALUES})
    _refused(path, ON_PURPOSE)
    _refused(path, ON_PURPOSE, read_file)
    assert not sentinel.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_real_payloads_are_refused_by_name(tmp_path, protocol):
    sentinel = tmp_path / "was_run"
    payload = pickle.dumps({"model": {"x": _Reduces(exec, f"open({str(sentinel)!r}, 'w').close()")}}, protocol)
    path = tmp_path / "weights.pkl"
    path.write_bytes(payload)
    _refused(path, r"asks for (builtins|__builtin__)\.exec; .*nothing was run")
    assert not sentinel.exists()
    pickle.loads(payload)  # the same file, read the usual way, does run
    assert sentinel.exists()


def test_object_array_of_numpy_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"x": np.array([None], object)}, 2))
    _refused(path, "'O8'; only real numbers")


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    with pytest.raises(WeightsError) as caught:
        read_tensors(_pickle(tmp_path, make.text("evil\x1b[31m") + make.text("x\n" * 200) + b"\x93"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


# ------------------------------------------------------------------------------------------------ bounds and damage
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (1, (24,), (1,)), (0, (25,), (1,)), (0, (2, 13), (12, 1)), (24, (), ()), (-1, (2,), (1,)), (2, (2,), (-1,)),
        (0, (-2, -3), (1, 1)), (0, (2, 2), (1,)), (2**70, (1,), (1,)), (0, (2,), (2**70,)), (0, (2**70,), (1,)),
        (0, (2**40, 2**40), (0, 0)), (0, (2**25,), (0,)), (0, (1,) * 65, (1,) * 65),
    ],
)  # fmt: skip
def test_tensors_beyond_their_storage(tmp_path, offset, shape, strides):
    _refused(_zip(tmp_path, make.dictionary({"x": make.tensor(REFERENCE, offset, shape, strides)})), ON_PURPOSE)


def test_storages_that_lie(tmp_path):
    def lying(count, storages=RAW, **options):
        body = make.dictionary({"x": make.tensor(make.storage("0", "float32", count), 0, (1,), (1,))})
        return _zip(tmp_path, body, storages, **options)

    _refused(lying(2**60), "larger than the file")
    _refused(lying(-1), "larger than the file")
    _refused(lying(23), "96 bytes instead of 92")
    _refused(lying(24, {}), "no 'data/0'")
    _refused(lying(24, compression=zipfile.ZIP_DEFLATED), "compressed")
    _refused(lying(24, order=b"middle"), "unknown byte order")
    twice = make.dictionary({"x": WHOLE, "y": make.tensor(make.storage("0", "int64", 12), 0, (1,), (1,))})
    _refused(_zip(tmp_path, twice), "two sizes or types")


def test_many_large_tensors_from_one_small_storage(tmp_path):
    body = make.dictionary({str(i): make.tensor(REFERENCE, 0, (2**20,), (0,)) for i in range(20)})
    _refused(_zip(tmp_path, body), "far larger than the file")


@pytest.mark.parametrize("raw", [b"", b"\0" * 92, b"\0" * 100])
def test_arrays_whose_bytes_do_not_fit(tmp_path, raw):
    body = pickle.dumps({"x": VALUES}, 4).replace(b"C\x60" + VALUES.tobytes(), b"C" + bytes([len(raw)]) + raw)
    path = tmp_path / "weights.pkl"
    path.write_bytes(body)
    _refused(path, "do not fit")


def test_damaged_files(tmp_path):
    path = _zip(tmp_path, make.dictionary({"x": WHOLE}))
    data = path.read_bytes()
    np.testing.assert_array_equal(read_tensors(path)["x"], VALUES)
    for end in [*range(0, len(data), 31), len(data) - 1]:
        path.write_bytes(data[:end])
        _refused(path)
    place = data.index(VALUES.tobytes())
    path.write_bytes(data[: place + 8] + b"\xff" + data[place + 9 :])
    _refused(path, "damaged.*CRC")


def test_files_that_are_something_else(tmp_path):
    _refused(tmp_path / "missing.pth", "No such file")
    _refused(tmp_path, "[Dd]irectory")
    path = tmp_path / "other.pth"
    for content, reason in [(b"", "empty"), (b"\x89PNG\r\n\x1a\n" * 9, "not a file of weights"), (b"<html>", "not a")]:
        path.write_bytes(content)
        _refused(path, reason)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    _refused(path, "data.pkl")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/data.pkl", make.whole(b"}"))
        archive.writestr("net/constants.pkl", make.whole(b"}"))
    _refused(path, "TorchScript")


@pytest.mark.parametrize("body", [b"", b"a", b"u", b"t", b"R", b"\x87", b"h\x07", b"0", b"}K\1s", b"X\xff\xff\xff\xff",
                                  b"\x8e" + b"\xff" * 8, b"T\xff\xff\xff\xff", b"\xf0"])  # fmt: skip
def test_broken_programs(tmp_path, body):
    _refused(_pickle(tmp_path, body))


def test_a_huge_memo_index_takes_no_memory(tmp_path):
    assert read_file(_pickle(tmp_path, b"]r\xff\xff\xff\xff")) == []
