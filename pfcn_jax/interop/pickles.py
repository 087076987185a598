"""Running a pickle that can only build plain data and records of tensors.

A pickle is a program for a small stack machine. This is such a machine without its dangerous half: a name in the file
becomes an entry of the table in `records` or ends the reading, no module is imported and no attribute is looked up or
set, and only the functions of that table are ever called. Objects of classes (NEWOBJ, INST, OBJ), extension codes and
buffers from elsewhere have no opcode here.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from pfcn_jax.interop.records import (
    NAMES,
    ArrayRecord,
    DtypeRecord,
    Name,
    Storage,
    WeightsError,
    dictionary,
    finished,
    sizes_of,
    text_of,
    whole,
)

_KEYS = (str, bytes, int, float, bool, type(None))  # hashing a deep tuple would overflow the C stack


class Machine:
    """Runs the pickles in `data`, one a call; `position` is behind the last. `storages` collects what they name.

    `limit` is the size of the file in bytes, more than which no storage may have.
    """

    def __init__(self, data: bytes, *, limit: int):
        self._data, self.position, self._limit = data, 0, limit
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._pairs_left = len(data)  # items copied from lists; an honest pickle spends at least a byte on each

    def run(self) -> Any:
        """Raises WeightsError for what is not allowed, other exceptions for a damaged pickle."""
        self._stack, self._marks, self._memo = [], [], {}
        while (code := self._take(1)) != b".":
            action = _OPCODES.get(code)
            if action is None:
                raise WeightsError(f"opcode {code!r} in the pickle; only plain data and tensors are read")
            action(self)
        return self._stack.pop()

    # Reading.
    def _take(self, size: int) -> bytes:
        if size < 0 or size > len(self._data) - self.position:
            raise WeightsError("the pickle ends too early")
        self.position += size
        return self._data[self.position - size : self.position]

    def _sized(self, form: str) -> bytes:
        (size,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return self._take(size)

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self.position)
        line = self._take(end - self.position if end >= 0 else -1)
        self.position += 1
        return line

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    # The stack.
    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise WeightsError(f"the pickle takes a {type(self._stack[-1]).__name__} for a {kind.__name__}")
        return self._stack[-1]

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def items(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.items()

    def tuple_of(self, count: int) -> None:
        if count > len(self._stack):
            raise WeightsError("the pickle takes more than it has")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def extend(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def append(self) -> None:
        self.extend([self._stack.pop()])

    def update(self, items: list[Any]) -> None:
        self._fill(self._top(dict), items)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self.update([key, value])

    def dictionary(self) -> None:
        items = self.items()
        self.push({})
        self.update(items)

    def _fill(self, target: dict[Any, Any], items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in _KEYS:
                raise WeightsError(f"a key of type {type(key).__name__}")
            target[key] = value

    def set_of(self, items: list[Any]) -> None:
        if any(type(item) not in _KEYS for item in items):
            raise WeightsError("a set of other things than texts and numbers")
        self._top(set).update(items)

    def frozen(self) -> None:
        items = self.items()
        self.push(set())
        self.set_of(items)

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise WeightsError("the pickle refers to something that it has not made")
        self.push(self._memo[index])

    def whole(self) -> None:
        line = self._line()
        self.push(line == b"01" if line in (b"00", b"01") else int(line))  # these two are truth values

    def quoted(self) -> None:
        line = self._line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise WeightsError("a text without quotes in the pickle")
        self.push(codecs.escape_decode(line[1:-1])[0].decode("latin1"))

    # Names, and what they build.
    def find(self, module: Any, name: Any) -> None:
        found = NAMES.get((module, name)) if type(module) is str and type(name) is str else None
        if found is None:
            label = ascii(f"{module}.{name}" if type(module) is str and type(name) is str else "something nameless")
            raise WeightsError(f"the pickle asks for {label[1:-1][:120]}; only plain data and tensors are read, "
                               "nothing was run")  # fmt: skip
        self.push(found)

    def find_on_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self.find(module, name)

    def reduce(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if type(name) is not Name or name.build is None or type(arguments) is not tuple:
            raise WeightsError("the pickle calls something that is not to be called")
        value = name.build(*arguments)
        if name.build is dictionary and type(value) is list:
            value = self._from_pairs(value)
        self.push(value)

    def _from_pairs(self, pairs: list[Any]) -> dict[Any, Any]:
        self._pairs_left -= len(pairs)
        if self._pairs_left < 0 or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
            raise WeightsError("a dictionary made from something else")
        made: dict[Any, Any] = {}
        self._fill(made, [part for pair in pairs for part in pair])
        return made

    def build(self) -> None:
        """State for what lies below it: only NumPy's types have one; attributes of a dictionary are dropped."""
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is dict and type(state) is dict:
            return  # `_metadata` of a state dict
        if type(state) is not tuple:
            raise WeightsError("the pickle sets what is not to be set")
        if type(target) is DtypeRecord and len(state) >= 5 and state[2:5] == (None, None, None):
            order = text_of(state[1])
            if order not in ("<", ">", "=", "|"):
                raise WeightsError("an array of unknown byte order")
            target.order = order
        elif type(target) is ArrayRecord and target.shape is None and len(state) == 5:
            _, shape, dtype, fortran, raw = state
            target.shape, target.dtype = sizes_of(shape, "an array's shape"), finished(dtype)
            target.fortran, target.raw = fortran is True or fortran == 1, raw
        else:
            raise WeightsError("the pickle sets what is not to be set")

    def persistent(self) -> None:
        """('storage', type, key, place, number of values[, None]): torch.save's reference to bytes."""
        reference = self._top(tuple)
        if len(reference) not in (5, 6) or reference[0] != "storage" or reference[5:] not in ((), (None,)):
            raise WeightsError("a reference in the pickle that is no storage")
        kind, key, count = reference[1], text_of(reference[2]), whole(reference[4], "a storage's size")
        if type(kind) is not Name or kind.dtype is None or kind.build is not None:
            raise WeightsError("a storage of unknown type")
        if not 0 <= count * kind.dtype.itemsize <= self._limit:
            raise WeightsError(f"a storage of {count} {kind.dtype.name} is larger than the file")
        storage = self.storages.setdefault(key, Storage(key, kind.dtype, count))
        if (storage.dtype, storage.count) != (kind.dtype, count):
            raise WeightsError(f"storage {ascii(key)[:40]} is said to have two sizes or types")
        self._stack[-1] = storage


def _long(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


_OPCODES: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m._take(1),  # PROTO
    b"\x95": lambda m: m._take(8),  # FRAME; frames only help buffering
    b"(": Machine.mark, b"0": Machine.pop, b"1": lambda m: m.items(), b"2": lambda m: m.push(m._stack[-1]),
    b"N": lambda m: m.push(None), b"\x88": lambda m: m.push(True), b"\x89": lambda m: m.push(False),
    b"I": Machine.whole, b"L": lambda m: m.push(int(m._line().rstrip(b"L"))), b"F": lambda m: m.push(float(m._line())),
    b"J": lambda m: m.push(m._number("<i")), b"K": lambda m: m.push(m._number("<B")),
    b"M": lambda m: m.push(m._number("<H")), b"G": lambda m: m.push(m._number(">d")),
    b"\x8a": lambda m: m.push(_long(m._sized("<B"))), b"\x8b": lambda m: m.push(_long(m._sized("<i"))),
    b"S": Machine.quoted, b"T": lambda m: m.push(m._sized("<i").decode("latin1")),
    b"U": lambda m: m.push(m._sized("<B").decode("latin1")),
    b"V": lambda m: m.push(m._line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(m._sized("<I").decode()), b"\x8c": lambda m: m.push(m._sized("<B").decode()),
    b"\x8d": lambda m: m.push(m._sized("<Q").decode()),
    b"B": lambda m: m.push(m._sized("<I")), b"C": lambda m: m.push(m._sized("<B")),
    b"\x8e": lambda m: m.push(m._sized("<Q")), b"\x96": lambda m: m.push(m._sized("<Q")),
    b"]": lambda m: m.push([]), b"a": Machine.append, b"e": lambda m: m.extend(m.items()),
    b"l": lambda m: m.push(m.items()), b"t": lambda m: m.push(tuple(m.items())), b")": lambda m: m.push(()),
    b"\x85": lambda m: m.tuple_of(1), b"\x86": lambda m: m.tuple_of(2), b"\x87": lambda m: m.tuple_of(3),
    b"}": lambda m: m.push({}), b"d": Machine.dictionary, b"s": Machine.set_item, b"u": lambda m: m.update(m.items()),
    b"\x8f": lambda m: m.push(set()), b"\x90": lambda m: m.set_of(m.items()), b"\x91": Machine.frozen,
    b"g": lambda m: m.get(int(m._line())), b"h": lambda m: m.get(m._number("<B")),
    b"j": lambda m: m.get(m._number("<I")), b"p": lambda m: m.put(int(m._line())),
    b"q": lambda m: m.put(m._number("<B")), b"r": lambda m: m.put(m._number("<I")),
    b"\x94": lambda m: m.put(len(m._memo)),
    b"c": lambda m: m.find(m._line().decode(), m._line().decode()), b"\x93": Machine.find_on_stack,
    b"R": Machine.reduce, b"b": Machine.build, b"Q": Machine.persistent,
}  # fmt: skip
