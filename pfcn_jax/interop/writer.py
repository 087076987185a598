"""Writes a state dict as a `.pth` that `torch.load` reads (also with `weights_only=True`), without PyTorch.

The format is torch.save's zip: a pickle that names each tensor's storage, and the storages' raw bytes. The pickle is
assembled from opcodes, because Python's pickler would import the names that it writes.
"""

from __future__ import annotations

import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from pfcn_jax.utils.atomic import atomic_path, write_bytes

_STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip
_ROOT = "archive"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same tensors give the same bytes, whenever they are written


def write_state_dict(
    path: pathlib.Path | str, tensors: Mapping[str, np.ndarray], *, wrap: str | None = "model"
) -> None:
    """Writes `{wrap: {name: tensor}}` (detectron2's form), or the bare state dict with `wrap=None`.

    The file is written atomically, and its bytes depend on nothing but the arguments.

    Raises:
      TypeError: an array of a type that has no storage in PyTorch's format.
      OSError: the file cannot be written.
    """
    arrays = _checked(tensors)
    body = _ordered_dict(arrays)
    if wrap is not None:
        body = pickle.EMPTY_DICT + _text(wrap) + body + pickle.SETITEM
    entries = {"data.pkl": pickle.PROTO + b"\x02" + body + pickle.STOP, "byteorder": b"little"}

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(_member(name), data)
        for index, array in enumerate(arrays.values()):
            archive.writestr(_member(f"data/{index}"), array.tobytes())
        archive.writestr(_member("version"), b"3\n")


def write_safetensors(
    path: pathlib.Path | str, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a `.safetensors` file atomically; the same tensors give the same bytes.

    Args:
      metadata: texts for the file's header; `reader.read_weights` returns them.

    Raises:
      TypeError: an array of a type that PyTorch's format, and so a state dict, does not know.
      OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    arrays = {name: np.array(array, order="C") for name, array in _checked(tensors).items()}
    write_bytes(path, save(arrays, metadata=dict(metadata) if metadata else None))


def _checked(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays in C order and little-endian (np.ascontiguousarray would add an axis to a scalar)."""
    arrays = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor, order="C")
        if not isinstance(name, str) or array.dtype.name not in _STORAGES:
            raise TypeError(f"{name!r}: {array.dtype} cannot be written; known: {', '.join(_STORAGES)}")
        little = array.dtype if array.dtype.name == "bfloat16" else array.dtype.newbyteorder("<")
        arrays[name] = array.astype(little, copy=False)
    return arrays


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(f"{_ROOT}/{name}", _LONG_AGO)
    member.create_system, member.external_attr = 3, 0o644 << 16
    return member


# ----------------------------------------------------------------------------------------------------------- opcodes
def _text(value: str) -> bytes:
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _integer(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _integers(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE


def _ordered_dict(arrays: Mapping[str, np.ndarray]) -> bytes:
    empty = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    items = b"".join(_text(name) + _tensor(index, array, empty) for index, (name, array) in enumerate(arrays.items()))
    return empty + pickle.MARK + items + pickle.SETITEMS


def _tensor(index: int, array: np.ndarray, no_hooks: bytes) -> bytes:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)."""
    storage = _text("storage") + _global("torch", _STORAGES[array.dtype.name]) + _text(str(index)) + _text("cpu")
    storage = pickle.MARK + storage + _integer(array.size) + pickle.TUPLE + pickle.BINPERSID
    strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
    arguments = storage + _integer(0) + _integers(array.shape) + _integers(strides) + pickle.NEWFALSE + no_hooks
    return _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE
