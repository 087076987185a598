"""Cycles, HBM traffic and collectives of each line of a compiled program, times the trips of its loops."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pfcn_jax.studies.compile.hlo import Computation, HloModule, Instruction, shape_bytes
from pfcn_jax.studies.compile.loops import trip_count

PRODUCTS, REDUCTIONS, GATHERS, LAYOUT, COLLECTIVES, OTHER = KINDS = (
    "convolutions and products",
    "reductions",
    "gathers and scatters",
    "copies and layout",
    "collectives",
    "other",
)
_COLLECTIVE = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
_MARKS = (  # a fusion is of the first kind that one of its operations marks
    (PRODUCTS, {"convolution", "dot"}),
    (GATHERS, {"gather", "scatter"}),
    (REDUCTIONS, {"reduce", "reduce-window", "select-and-scatter"}),
)
_MOVES = {
    "bitcast", "bitcast-convert", "broadcast", "concatenate", "constant", "convert", "copy", "dynamic-slice",
    "dynamic-update-slice", "fusion", "get-tuple-element", "iota", "pad", "parameter", "reshape", "reverse", "slice",
    "transpose", "tuple",
}  # fmt: skip
_FREE = {
    "after-all", "bitcast", "conditional", "constant", "get-tuple-element", "iota", "parameter", "partition-id",
    "replica-id", "tuple", "while",
}  # fmt: skip
_PARTS = {"slice", "dynamic-slice", "gather"}  # read as much as they return, not their whole operand
_CALLS = {"call": "to_apply", "async-start": "calls"}


@dataclasses.dataclass(frozen=True)
class Line:
    """An instruction with what it costs in one run of the program, on one chip."""

    name: str
    opcode: str
    kind: str
    module: str  # as "backbone/res4_2"; outside of the network the file, as "panoptic/targets"
    source: str  # "panoptic/targets.py:31 make_targets"
    shape: str
    times: int  # executions; a loop whose length follows from the data counts once
    counted: bool  # False: inside of such a loop
    cycles: int  # of all executions
    hbm_bytes: int  # read and written, of all executions
    result_bytes: int  # of all executions, wherever they lie
    estimated: bool  # the compiler gives its cycles


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop."""

    name: str
    module: str
    source: str
    trips: int | None  # None: follows from the data


def program_costs(module: HloModule, names: Mapping[str, Any]) -> tuple[list[Line], list[Loop]]:
    """Every line that does work, and every loop.

    Args:
      names: nested names of the network's modules, as its tree of parameters.
    """
    lines: list[Line] = []
    loops: list[Loop] = []
    _walk(_Walk(module, names, lines, loops), module.entry, 1, True)
    return lines, loops


@dataclasses.dataclass(frozen=True)
class _Walk:
    module: HloModule
    names: Mapping[str, Any]
    lines: list[Line]
    loops: list[Loop]


def _walk(walk: _Walk, place: str, times: int, counted: bool) -> None:
    """Adds the lines of a computation that runs `times` times."""
    module = walk.module
    computation = module.computations[place]
    for instruction in computation.values():
        if instruction.opcode == "while":
            trips = trip_count(module, place, instruction)
            path = module_path(instruction.op_name, walk.names, module.source(instruction))
            walk.loops.append(Loop(instruction.name, path, module.source(instruction), trips))
            body = instruction.computation("body")
            _walk(walk, body, times * (1 if trips is None else trips), counted and trips is not None)
        elif instruction.opcode == "conditional":
            walk.lines.extend(_dearest_branch(walk, instruction, times, counted))
        elif instruction.opcode in _CALLS and instruction.computation(_CALLS[instruction.opcode]):
            _walk(walk, instruction.computation(_CALLS[instruction.opcode]), times, counted)
        elif instruction.opcode not in _FREE and not instruction.opcode.endswith(("-done", "-update")):
            walk.lines.append(_line(walk, computation, instruction, times, counted))


def _dearest_branch(walk: _Walk, conditional: Instruction, times: int, counted: bool) -> list[Line]:
    found: list[list[Line]] = [[]]
    for branch in conditional.branches:
        found.append([])
        _walk(dataclasses.replace(walk, lines=found[-1]), branch, times, counted)
    return max(found, key=lambda lines: sum(line.cycles for line in lines))


def _line(walk: _Walk, computation: Computation, instruction: Instruction, times: int, counted: bool) -> Line:
    module = walk.module
    source = module.source(instruction)
    cycles = instruction.cycles
    return Line(
        name=instruction.name,
        opcode=instruction.opcode,
        kind=kind_of(module, instruction),
        module=module_path(instruction.op_name, walk.names, source),
        source=source,
        shape=re.sub(r"\{[^}]*\}|/\*[^/]*\*/", "", instruction.shape),
        times=times,
        counted=counted,
        cycles=times * (cycles or 0),
        hbm_bytes=times * hbm_bytes(module, computation, instruction),
        result_bytes=times * shape_bytes(instruction.shape),
        estimated=cycles is not None,
    )


def module_path(op_name: str, names: Mapping[str, Any], source: str) -> str:
    """The path of the network's module in an operation's name; outside of the network the file of its source."""
    path, below = [], names
    for part in op_name.split("/"):
        if isinstance(below.get(part), Mapping):
            path.append(part)
            below = below[part]
    return "/".join(path) or source.partition(".py:")[0] or "unknown"


def kind_of(module: HloModule, instruction: Instruction) -> str:
    """One of KINDS, of a fusion by what it holds."""
    opcodes = set(_opcodes(module, instruction))
    if any(opcode.startswith(_COLLECTIVE) for opcode in opcodes):
        return COLLECTIVES
    for kind, marks in _MARKS:
        if opcodes & marks:
            return kind
    moved = all(opcode in _MOVES or opcode.startswith("copy") for opcode in opcodes)
    return LAYOUT if moved else OTHER


def _opcodes(module: HloModule, instruction: Instruction) -> Iterator[str]:
    yield instruction.opcode
    for inner in module.computations.get(instruction.computation("calls"), {}).values():
        yield from _opcodes(module, inner)


def hbm_bytes(module: HloModule, computation: Computation, instruction: Instruction) -> int:
    """Bytes that one execution reads from and writes to HBM, by the shapes and memory spaces of its operands."""
    if instruction.opcode == "copy-start":  # between HBM and on-chip memory: a tuple of target, source and a flag
        return shape_bytes(computation[instruction.operands[0]].shape) if _touches_hbm(instruction) else 0
    if instruction.opcode == "dynamic-update-slice":
        return 2 * shape_bytes(computation[instruction.operands[1]].shape, only_hbm=True)
    written = shape_bytes(instruction.shape, only_hbm=True)
    if instruction.opcode in _PARTS:
        return 2 * written if "S(" not in computation[instruction.operands[0]].shape else written
    inner = module.computations.get(instruction.computation("calls"), {})
    updates = [part for part in inner.values() if part.opcode == "dynamic-update-slice" and part.is_root]
    if updates:
        written = min(written, shape_bytes(inner[updates[0].operands[1]].shape))
    read = 0
    for number, name in enumerate(instruction.operands):
        whole = shape_bytes(computation[name].shape, only_hbm=True)
        read += _read_of_parameter(module, inner, number, whole) if inner else whole
    return written + read


def _touches_hbm(start: Instruction) -> bool:
    arrays = re.findall(r"\[[\d,]*\]\{[^}]*\}", start.shape)
    return any("S(1)" not in array for array in arrays[:2])


def _read_of_parameter(module: HloModule, inner: Computation, number: int, whole: int) -> int:
    """Bytes that a fused computation reads of its parameter: of one that is only cut into parts, the parts."""
    parameter = next((i for i in inner.values() if i.opcode == "parameter" and i.arguments == str(number)), None)
    return whole if parameter is None else min(whole, _read_of(module, inner, parameter.name, whole))


def _read_of(module: HloModule, inner: Computation, name: str, whole: int) -> int:
    total = 0
    for user in (user for user in inner.values() if name in user.operands):
        if user.opcode in _PARTS and user.operands[0] == name:
            total += shape_bytes(user.shape)
        elif user.opcode == "bitcast":
            total += _read_of(module, inner, user.name, whole)
        elif user.opcode == "fusion":
            below = module.computations[user.computation("calls")]
            numbers = [number for number, operand in enumerate(user.operands) if operand == name]
            total += sum(_read_of_parameter(module, below, number, whole) for number in numbers)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return whole
    return total
