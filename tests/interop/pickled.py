"""Pickles and PyTorch files made opcode by opcode, as PyTorch makes them and as an attacker would."""

from __future__ import annotations

import pickle
import struct
import zipfile

import numpy as np

PROTO = b"\x80\x02"
STORAGE_NAMES = {"float32": "FloatStorage", "int64": "LongStorage", "bool": "BoolStorage", "float16": "HalfStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(12, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def dictionary(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def whole(body: bytes) -> bytes:
    return PROTO + body + b"."


def storage(key: str, kind: str, count: int, *, legacy: bool = False) -> bytes:
    parts = [text("storage"), name("torch", STORAGE_NAMES[kind]), text(key), text("cpu"), number(count)]
    return tuple_of(*parts, *([b"N"] if legacy else [])) + b"Q"


def tensor(reference: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    sizes, steps = tuple_of(*map(number, shape)), tuple_of(*map(number, strides))
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), reference, number(offset), sizes, steps, b"\x89", hooks)


def torch_zip(path, body: bytes, storages: dict[str, bytes], *, compression=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("any/data.pkl", whole(body))
        archive.writestr("any/byteorder", order)
        for key, raw in storages.items():
            archive.writestr(f"any/data/{key}", raw)
        archive.writestr("any/version", "3\n")
    return path


def torch_legacy(path, body: bytes, storages: dict[str, np.ndarray], *, protocol: int = 1001):
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(protocol, 2)]
    parts += [pickle.dumps({"little_endian": True}, 2), whole(body), pickle.dumps(list(storages), 2)]
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(parts))
    return path
