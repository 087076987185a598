"""Globals that a pickle of weights may name, and the records that they build.

None of them is PyTorch's or NumPy's own. `reader` reads the bytes of a tensor later, when it knows which tensors are
needed and that they fit the file; so nothing here allocates more memory than the pickle itself contains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from pfcn_jax.errors import UserError

_STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
_TORCH_DTYPES = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
    "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip
_NUMPY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")  # no objects, no records
_MAX_AXES = 64  # NumPy's


class WeightsError(UserError):
    """A weights file cannot be used; the message names it and the reason."""

    code = "weights"


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A global of the pickle. REDUCE calls `build`; `dtype` is the element type of a storage class."""

    label: str
    build: Callable[..., Any] | None = None
    dtype: np.dtype | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Buffer of one or several tensors, by key: `count` values of `dtype` (bytes if `dtype` is uint8)."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """A tensor as the file claims it, in values of `dtype`; not yet checked against its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(slots=True, eq=False)
class DtypeRecord:
    """A numpy.dtype under construction."""

    code: str
    order: str = "<"


@dataclasses.dataclass(slots=True, eq=False)
class ArrayRecord:
    """A numpy.ndarray under construction; `raw` is bytes, or text whose code points are bytes."""

    shape: tuple[int, ...] | None = None
    dtype: np.dtype | None = None
    fortran: bool = False
    raw: Any = b""
    axes: tuple[int, ...] | None = None


def whole(value: Any, what: str) -> int:
    if type(value) is not int:
        raise WeightsError(f"{what} is no whole number")
    return value


def sizes_of(value: Any, what: str) -> tuple[int, ...]:
    if type(value) not in (tuple, list) or len(value) > _MAX_AXES:
        raise WeightsError(f"{what} is no short list of whole numbers")
    return tuple(whole(item, what) for item in value)


def text_of(value: Any) -> str:
    if type(value) is bytes:
        return value.decode("latin1")
    if type(value) is not str:
        raise WeightsError("something else where a text is expected")
    return value


# ------------------------------------------------------------------------------------------- builders of the globals
def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRecord:
    if type(storage) is not Storage:
        raise WeightsError("a tensor without a storage")
    sizes, steps = sizes_of(shape, "a tensor's shape"), sizes_of(strides, "a tensor's strides")
    return TensorRecord(storage, whole(offset, "a tensor's offset"), sizes, steps, storage.dtype)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> TensorRecord:
    """Newer types use untyped storages of bytes; the offset counts values."""
    if type(dtype) is not Name or dtype.dtype is None:
        raise WeightsError("a tensor of unknown type")
    return dataclasses.replace(_tensor(storage, offset, shape, strides), dtype=dtype.dtype)


def _parameter(tensor: Any, *rest: Any) -> TensorRecord:
    if type(tensor) is not TensorRecord:
        raise WeightsError("a parameter without a tensor")
    return tensor


def _dtype(code: Any, *rest: Any) -> DtypeRecord:
    code = text_of(code)
    if code not in _NUMPY_CODES:
        raise WeightsError(f"an array of type {ascii(code)[:40]}; only real numbers are read")
    return DtypeRecord(code)


def finished(dtype: Any) -> np.dtype:
    if type(dtype) is not DtypeRecord:
        raise WeightsError("an array of unknown type")
    return np.dtype((">" if dtype.order == ">" else "<") + dtype.code)


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> ArrayRecord:
    """Protocol 5. `axes` is the transpose of an array that is neither in C nor in Fortran order."""
    size = sizes_of(shape, "an array's shape")
    axes = None if axes is None or order != "K" else sizes_of(axes, "an array's axes")
    return ArrayRecord(size, finished(dtype), order == "F", raw, axes)


def _scalar(dtype: Any, raw: Any) -> ArrayRecord:
    return ArrayRecord((), finished(dtype), False, raw)


def _encode(text: Any, encoding: Any = "latin1") -> str:
    """Bytes of old protocols. Returns the text itself: a pickle could ask for its encoding again and again."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise WeightsError("a text that is no bytes in disguise")
    return text


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise WeightsError("bytes made from something else")
    return b""


def dictionary(*arguments: Any) -> Any:
    """Returns an empty dictionary, a given one, or (Python 2) a list of pairs, which the machine merges."""
    if not arguments:
        return {}
    if len(arguments) == 1 and type(arguments[0]) in (dict, list):
        return arguments[0]
    raise WeightsError("a dictionary made from something else")


def _size(*arguments: Any) -> tuple[int, ...]:
    return sizes_of(arguments[0], "a torch.Size") if arguments else ()


def _table() -> dict[tuple[str, str], Name]:
    builders: dict[str, Callable[..., Any] | None] = {
        "collections.OrderedDict": dictionary,
        "collections.Counter": dictionary,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch.nn.parameter.Parameter": _parameter,
        "torch.nn.Parameter": _parameter,
        "torch.Size": _size,
        "torch.device": lambda *parts: ":".join(str(part)[:20] for part in parts[:2] if type(part) in (str, int)),
        "_codecs.encode": _encode,
        "builtins.bytes": _no_bytes,
        "__builtin__.bytes": _no_bytes,
        "numpy.dtype": _dtype,
        "numpy.ndarray": None,
    }
    for core in ("numpy.core", "numpy._core"):
        builders[f"{core}.multiarray._reconstruct"] = lambda *arguments: ArrayRecord()
        builders[f"{core}.multiarray.scalar"] = _scalar
        builders[f"{core}.numeric._frombuffer"] = _frombuffer
    names = {key: Name(key, build) for key, build in builders.items()}
    names |= {f"torch.{key}": Name(f"torch.{key}", dtype=np.dtype(kind)) for key, kind in _STORAGES.items()}
    names |= {f"torch.{key}": Name(f"torch.{key}", dtype=np.dtype(kind)) for key, kind in _TORCH_DTYPES.items()}
    names["torch.storage.UntypedStorage"] = Name("torch.storage.UntypedStorage", dtype=np.dtype(np.uint8))
    return {(key.rpartition(".")[0], key.rpartition(".")[2]): name for key, name in names.items()}


NAMES = _table()
