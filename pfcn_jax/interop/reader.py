"""Reads `.pth`, `.pkl` and `.safetensors` without PyTorch and without executing code of the file.

The content tells the format: a zip (torch.save since 1.6), a pickle (torch.save before, or a `.pkl` of arrays), or
safetensors. Pickles run on the machine of `pickles`, which only builds records of claims; this file checks the claims
against the bytes that exist, before anything is allocated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from pfcn_jax.interop.pickles import Machine
from pfcn_jax.interop.records import ArrayRecord, Name, Storage, TensorRecord, WeightsError

__all__ = ["Weights", "WeightsError", "read_file", "read_tensors", "read_weights"]

CONTAINERS = ("model", "state_dict", "module", "blobs")  # keys that may hold the state dict; else the top level
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_PICKLE_STARTS = b"\x80(}]c"
_PLAIN = (str, int, float, bool, type(None))
_SPREAD, _SLACK = 4, 2**26  # all tensors together may take this multiple of the file's size, plus so many bytes
_SAFETENSORS = {
    "F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16, "I8": np.int8,
    "I16": np.int16, "I32": np.int32, "I64": np.int64, "U8": np.uint8, "U16": np.uint16, "U32": np.uint32,
    "U64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors by name (read-only arrays, which may share memory), and the plain values of the file."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str | int | float | bool | None]


def read_tensors(path: pathlib.Path | str) -> dict[str, np.ndarray]:
    """Returns `read_weights(path).tensors`."""
    return read_weights(path).tensors


def read_weights(path: pathlib.Path | str) -> Weights:
    """Reads the state dict of a weights file.

    It is the first of 'model', 'state_dict', 'module', 'blobs' and the top level that holds tensors by name. The prefix
    'module.' of data-parallel wrappers is removed if all names have it. Other tensors (an optimizer's) are not loaded.

    Raises:
      WeightsError: no such file, damaged, no tensors in it, or a pickle that asks for anything but data and tensors.
    """
    with _opened(pathlib.Path(path)) as (content, metadata, make):
        if type(content) is not dict:
            raise WeightsError("no state dict (names with tensors) in it")
        found: dict[str, Any] = {}
        for candidate in (*(content.get(key) for key in CONTAINERS), content):
            if type(candidate) is dict:
                found = {key: item for key, item in candidate.items() if type(key) is str and _is_tensor(item)}
            if found:
                break
        else:
            raise WeightsError("no state dict (names with tensors) in it")
        tensors = {name: make(item) for name, item in found.items()}
        plain = {key: item for key, item in content.items() if type(key) is str and type(item) in _PLAIN}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    return Weights(tensors, {**plain, **metadata})


def read_file(path: pathlib.Path | str) -> Any:
    """Reads everything in a weights file: dictionaries, lists and plain values, with arrays in place of tensors.

    Raises:
      WeightsError: as `read_weights`; also for a container inside itself.
    """
    with _opened(pathlib.Path(path)) as (content, _, make):
        return _finish(content, make, {})


def _finish(value: Any, make: Callable[[Any], np.ndarray], made: dict[int, Any]) -> Any:
    """Converts records to arrays. `made` preserves sharing; None in it marks containers in progress."""
    if _is_tensor(value):
        return make(value)
    if type(value) not in (dict, list, tuple):
        return value.label if type(value) is Name else value
    if id(value) in made:
        if made[id(value)] is None:
            raise WeightsError("a container inside itself")
        return made[id(value)]
    made[id(value)] = None
    if type(value) is dict:
        made[id(value)] = {key: _finish(item, make, made) for key, item in value.items()}
    else:
        made[id(value)] = type(value)(_finish(item, make, made) for item in value)
    return made[id(value)]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (TensorRecord, ArrayRecord, np.ndarray))


# ---------------------------------------------------------------------------------------------- from records to arrays
class _Maker:
    """Converts records to arrays, each once; `raw` returns the bytes of a storage."""

    def __init__(self, file_size: int, raw: Callable[[Storage], Any]):
        self._left, self._raw = _SPREAD * file_size + _SLACK, raw
        self._made: dict[int, np.ndarray] = {}
        self._bytes: dict[Storage, np.ndarray] = {}

    def __call__(self, record: Any) -> np.ndarray:
        if isinstance(record, np.ndarray):
            return record
        if id(record) not in self._made:
            array = self._tensor(record) if type(record) is TensorRecord else self._array(record)
            array.flags.writeable = False
            self._made[id(record)] = array
        return self._made[id(record)]

    def _spend(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Returns the number of values after checking the memory limit: strides of 0 expand a few bytes."""
        if min(shape, default=0) < 0:
            raise WeightsError(f"a tensor of shape {shape}")
        count = math.prod(shape)
        self._left -= count * itemsize
        if self._left < 0:
            raise WeightsError(f"a tensor of shape {shape}: the tensors are far larger than the file")
        return count

    def _storage(self, storage: Storage) -> np.ndarray:
        if storage not in self._bytes:
            raw = np.frombuffer(self._raw(storage), np.uint8)
            if raw.size != storage.count * storage.dtype.itemsize:
                raise WeightsError(f"storage {storage.key!a} has {raw.size} bytes for {storage.count} values")
            self._bytes[storage] = raw if raw.ctypes.data % 16 == 0 else raw.copy()  # an old file aligns nothing
        return self._bytes[storage]

    def _tensor(self, record: TensorRecord) -> np.ndarray:
        shape, strides, offset = record.shape, record.strides, record.offset
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise WeightsError(f"a tensor of shape {shape}, strides {strides}, offset {offset}")
        if self._spend(shape, record.dtype.itemsize) == 0:
            return np.zeros(shape, record.dtype)
        raw = self._storage(record.storage)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if (last + 1) * record.dtype.itemsize > raw.size:
            raise WeightsError(f"a tensor of shape {shape} reaches beyond its storage of {raw.size} bytes")
        values = raw[offset * record.dtype.itemsize : (last + 1) * record.dtype.itemsize]
        values = _decode(values, record.dtype, self.byte_order)
        steps = tuple(stride * values.itemsize for stride in strides)
        view = np.lib.stride_tricks.as_strided(values, shape, steps, writeable=False)
        return np.array(view, order="C") if not view.flags.c_contiguous else view

    def _array(self, record: ArrayRecord) -> np.ndarray:
        if record.shape is None or record.dtype is None:
            raise WeightsError("an array without contents")
        count = self._spend(record.shape, record.dtype.itemsize)
        raw = record.raw.encode("latin1") if type(record.raw) is str else record.raw
        if type(raw) is not bytes or len(raw) != count * record.dtype.itemsize:
            raise WeightsError(f"an array of shape {record.shape} whose bytes do not fit it")
        order = "big" if record.dtype.newbyteorder("=") != record.dtype else "little"
        values = _decode(np.frombuffer(raw, np.uint8), record.dtype.newbyteorder("="), order)
        array = values.reshape(record.shape, order="F" if record.fortran else "C")
        return np.array(array if record.axes is None else array.transpose(record.axes), order="C")

    byte_order = "little"


def _decode(raw: np.ndarray, dtype: np.dtype, byte_order: str) -> np.ndarray:
    """Decodes bytes in this machine's byte order, through integers, because bfloat16 has no byte order."""
    if dtype == np.bool_:
        return raw != 0  # any other byte than 0 and 1 would not be a valid bool
    whole = raw.view(np.dtype(f"{'<' if byte_order == 'little' else '>'}u{dtype.itemsize}"))
    return whole.astype(f"=u{dtype.itemsize}", copy=False).view(dtype)


# -------------------------------------------------------------------------------------------------------- file formats
@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[Any, dict[str, Any], Callable[[Any], np.ndarray]]]:
    """Yields the content with records, the file's metadata, and a function from records to arrays.

    Every error, also of the caller's block, becomes one that names the file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
        size = path.stat().st_size
        if not start:
            raise WeightsError("the file is empty")
        if start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                content, make = _torch_zip(archive, size)
                yield content, {}, make
        elif start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8:
            content, metadata = _safetensors(path)
            yield content, metadata, _Maker(size, lambda storage: b"")
        elif start[:1] in _PICKLE_STARTS:
            content, make = _pickles(path.read_bytes())
            yield content, {}, make
        else:
            raise WeightsError("not a file of weights (neither a zip nor a pickle nor safetensors)")
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # whatever a damaged file provokes in the parsers
        raise WeightsError(f"{path}: damaged or not a file of weights ({type(error).__name__}: {error})") from error


def _torch_zip(archive: zipfile.ZipFile, size: int) -> tuple[Any, _Maker]:
    """torch.save since 1.6: `<name>/data.pkl`, and each storage's bytes in `<name>/data/<key>`."""
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise WeightsError("a zip without PyTorch's data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise WeightsError("a TorchScript program; save its state dict instead")

    def read(name: str, expected: int | None = None) -> bytes:
        member = members.get(root + name)
        if member is None:
            raise WeightsError(f"no {name!a} in it")
        # torch.save compresses nothing, so that what is said to be there fits the file before it is read.
        if member.compress_type != zipfile.ZIP_STORED or not member.file_size == member.compress_size <= size:
            raise WeightsError(f"{name!a} is compressed")
        if expected is not None and member.file_size != expected:
            raise WeightsError(f"{name!a} has {member.file_size} bytes instead of {expected}")
        return archive.read(member)

    machine = Machine(read("data.pkl"), limit=size)
    make = _Maker(size, lambda item: read(f"data/{item.key}", item.count * item.dtype.itemsize))
    if f"{root}byteorder" in members:
        make.byte_order = read("byteorder").strip().decode()
        if make.byte_order not in ("little", "big"):
            raise WeightsError(f"unknown byte order {ascii(make.byte_order)[:20]}")
    return machine.run(), make


def _pickles(data: bytes) -> tuple[Any, _Maker]:
    """A `.pkl` of arrays, or torch.save before 1.6: five pickles and then the storages' bytes, little-endian."""
    machine = Machine(data, limit=len(data))
    first = machine.run()
    places: dict[str, memoryview] = {}

    def raw(storage: Storage) -> memoryview:
        if storage.key not in places:
            raise WeightsError(f"no bytes for storage {ascii(storage.key)[:40]}")
        return places[storage.key]

    make = _Maker(len(data), raw)
    if type(first) is not int:
        return first, make
    if first != _LEGACY_MAGIC or machine.run() != _LEGACY_PROTOCOL:
        raise WeightsError("no PyTorch file: its magic number or protocol is unknown")
    machine.run()  # information about the system that wrote it
    content, keys = machine.run(), machine.run()
    if type(keys) is not list:
        raise WeightsError("no list of storages in it")
    position = machine.position
    for key in keys:
        storage = machine.storages.get(key) if type(key) is str else None
        (count,) = struct.unpack_from("<q", data, position)
        if storage is None or storage.count != count:
            raise WeightsError(f"a storage of {count} values that belongs to no tensor")
        end = position + 8 + count * storage.dtype.itemsize
        if end > len(data):
            raise WeightsError("the file ends too early")
        places[storage.key], position = memoryview(data)[position + 8 : end], end
    return content, make


def _safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads safetensors: the package checks the file and returns bytes; its NumPy interface lacks bfloat16."""
    from safetensors import SafetensorError, deserialize, safe_open

    tensors = {}
    try:
        with safe_open(path, framework="numpy") as archive:
            metadata = dict(archive.metadata() or {})
        for name, entry in deserialize(path.read_bytes()):
            if entry["dtype"] not in _SAFETENSORS:
                raise WeightsError(f"tensor {ascii(name)[:80]} of type {entry['dtype']}; convert it to F32 first")
            raw = np.frombuffer(bytes(entry["data"]), np.uint8)
            dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
            tensors[name] = _decode(raw, dtype, "little").reshape(entry["shape"])
            tensors[name].flags.writeable = False
    except SafetensorError as error:
        raise WeightsError(f"damaged safetensors file ({error})") from None
    return tensors, metadata
