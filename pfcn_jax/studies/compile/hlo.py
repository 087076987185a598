"""Optimized HLO text -> computations, instructions, sizes and source lines. Knows no JAX."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_PACKAGE = "/pfcn_jax/"
# Bits of an element; all other types (tokens, opaque) hold no data.
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str  # as written, with layouts
    arguments: str  # what stands between the parentheses
    attributes: str  # what follows them
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(_NAME.findall(self.arguments))

    @property
    def op_name(self) -> str:
        """The path of the traced operation, as `jit(step)/jvp(Net)/backbone/conv1/conv_general_dilated`."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate for one execution; None where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    def computation(self, role: str) -> str:
        """The computation that it calls as `body`, `condition`, `calls` or `to_apply`; empty if none."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    @property
    def branches(self) -> tuple[str, ...]:
        """Computations of a conditional."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return tuple(_NAME.findall(listed[1]))
        return tuple(re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.attributes))


Computation = dict[str, Instruction]  # in the order of the text


@dataclasses.dataclass(frozen=True)
class HloModule:
    """A compiled program."""

    entry: str
    computations: dict[str, Computation]
    frames: dict[int, str]  # stack frame -> "panoptic/targets.py:31 make_targets", the innermost line of this package

    def source(self, instruction: Instruction) -> str:
        """File, line and function of this package that an instruction comes from; empty if unknown."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return self.frames.get(int(found[1]), "") if found else ""

    @functools.cached_property
    def loops(self) -> dict[str, tuple[str, Instruction]]:
        """Body of a while loop -> (the computation with the loop, the loop)."""
        return {
            instruction.computation("body"): (name, instruction)
            for name, computation in self.computations.items()
            for instruction in computation.values()
            if instruction.opcode == "while"
        }


def parse(text: str) -> HloModule:
    """Parses what `Compiled.as_text()` returns.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif instruction := _parse_line(line):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of an HLO module")
    return HloModule(entry, computations, _parse_frames(text))


def _parse_line(line: str) -> Instruction | None:
    begin = _LINE.match(line)
    if not begin:
        return None
    rest = line[begin.end() :]
    length = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, tail = rest[length + 1 :].partition("(")
    end = _closing("(" + tail) - 1
    return Instruction(begin[2], opcode, rest[:length], tail[:end], tail[end + 1 :], bool(begin[1]))


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the start of the text."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _parse_frames(text: str) -> dict[int, str]:
    """The tables FileNames, FunctionNames, FileLocations and StackFrames, joined."""
    if "\nStackFrames\n" not in text:
        return {}
    tables = {
        name: dict(re.findall(r"^(\d+) (.+)$", body, re.MULTILINE))
        for name, body in re.findall(r"^(\w+)\n((?:\d+ .+\n)+)", text, re.MULTILINE)
    }
    files, functions = (
        {number: quoted.strip('"') for number, quoted in tables[name].items()}
        for name in ("FileNames", "FunctionNames")
    )
    frames = {number: _numbers(entry) for number, entry in tables["StackFrames"].items()}
    result = {}
    for start in frames:
        number, seen = start, set()
        while number in frames and number not in seen:
            seen.add(number)
            location = _numbers(tables["FileLocations"].get(frames[number]["file_location_id"], ""))
            path = files.get(location.get("file_name_id", ""), "")
            if _PACKAGE in path:
                function = functions.get(location.get("function_name_id", ""), "")
                result[int(start)] = f"{path.rpartition(_PACKAGE)[2]}:{location['line']} {function}"
                break
            # A frame's parent is written as its number + 1; 1 is none.
            number = str(int(frames[number].get("parent_frame_id", "1")) - 1)
    return result


def _numbers(entry: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\d+)", entry))


# ------------------------------------------------------------------------------------------------------------- sizes
def shape_bytes(shape: str, *, only_hbm: bool = False) -> int:
    """Bytes of a shape with its layout's padding; of a tuple the sum.

    Args:
      only_hbm: leave out what lies in on-chip memory (`S(1)` and others in the layout).
    """
    return sum(size for size, in_hbm in _arrays(shape) if in_hbm or not only_hbm)


def _arrays(shape: str) -> Iterator[tuple[int, bool]]:
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if kind not in _BITS:
            continue
        sizes = [int(size) for size in dimensions.split(",") if size]
        order, _, notes = layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", notes)
        if tile and sizes:
            tiles = [int(size) for size in tile[1].split(",")]
            minor_first = [int(axis) for axis in order.split(",")]
            for axis, least in zip(minor_first, reversed(tiles)):
                sizes[axis] = -(-sizes[axis] // least) * least
        yield math.prod(sizes) * _BITS[kind] // 8, not re.search(r"S\([1-9]", notes)
