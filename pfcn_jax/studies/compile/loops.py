"""Trip counts of the loops of a compiled program."""

from __future__ import annotations

import re

from pfcn_jax.studies.compile.hlo import Computation, HloModule, Instruction

_PASSES_ON = {"copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"}


def trip_count(module: HloModule, place: str, loop: Instruction) -> int | None:
    """Trips of a while loop in the computation `place`; None if they follow from the data.

    Known are loops that the compiler annotates, and those that count from a constant to a constant by ones.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.computation("condition")]
    compare = _root(condition)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter = _element(condition[compare.operands[0]])
    limit = condition[compare.operands[1]]
    if counter is None or not _counts_by_one(module, loop.computation("body"), counter):
        return None
    bound = _element(limit)
    last = _integer(limit) if bound is None else _constant(module, place, loop.operands[0], bound)
    first = _constant(module, place, loop.operands[0], counter)
    return None if first is None or last is None else max(last - first, 0)


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _element(instruction: Instruction) -> int | None:
    """The index of a get-tuple-element; None for other instructions."""
    found = re.search(r"index=(\d+)", instruction.attributes)
    return int(found[1]) if instruction.opcode == "get-tuple-element" and found else None


def _integer(instruction: Instruction) -> int | None:
    is_number = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments)
    return int(instruction.arguments) if is_number else None


def _counts_by_one(module: HloModule, body: str, index: int) -> bool:
    computation = module.computations[body]
    after = _resolve(computation, _root(computation).operands[index])
    if after.opcode != "add":
        return False
    parts = [_resolve(computation, name) for name in after.operands]
    ones = [_integer(part) == 1 or _passed_one(module, body, part) for part in parts]
    return any(ones) and any(_element(part) == index for part in parts)


def _passed_one(module: HloModule, body: str, part: Instruction) -> bool:
    index = _element(part)
    return index is not None and _carried(module, body, index) == 1


def _resolve(computation: Computation, name: str) -> Instruction:
    """The instruction that makes a value, through copies and tuples."""
    instruction = computation[name]
    while True:
        if instruction.opcode in _PASSES_ON:
            instruction = computation[instruction.operands[0]]
            continue
        index = _element(instruction)
        made = computation[instruction.operands[0]] if index is not None else None
        if index is None or made is None or made.opcode != "tuple":
            return instruction
        instruction = computation[made.operands[index]]


def _constant(module: HloModule, place: str, initial: str, index: int) -> int | None:
    """The integer that element `index` of a loop's initial tuple holds, if it is a constant."""
    computation = module.computations[place]
    made = _resolve(computation, initial)
    if made.opcode != "tuple":
        return None
    value = _resolve(computation, made.operands[index])
    found = _integer(value)
    outer = _element(value)
    if found is None and outer is not None and computation[value.operands[0]].opcode == "parameter":
        return _carried(module, place, outer)
    return found


def _carried(module: HloModule, body: str, index: int) -> int | None:
    """The constant that a loop carries unchanged in element `index`; None if there is none, or no loop."""
    if body not in module.loops:
        return None
    computation = module.computations[body]
    after = _resolve(computation, _root(computation).operands[index])
    if _element(after) != index or computation[after.operands[0]].opcode != "parameter":
        return None
    place, loop = module.loops[body]
    return _constant(module, place, loop.operands[0], index)
