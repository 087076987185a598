"""Floating-point operations of a program, counted from what was traced, and as the compiler reports them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


def traced_flops(closed: core.ClosedJaxpr) -> float:
    """Operations of all matrix products and convolutions, 2 per multiplication and addition.

    A scan counts as often as it runs, what runs on each device of a mesh (shard_map) for all of them. A loop whose
    length follows from the data counts once, of a conditional the dearest branch, of a choice by platform the smallest
    that has any: the others only fill up the same work, or write it elementwise (depthwise convolutions on a CPU). (The
    compiler's own analysis counts the body of every loop once, and elementwise work as well.)
    """
    return _flops(closed.jaxpr)


def compiled_flops(compiled: jax.stages.Compiled) -> float | None:
    """Operations by the compiler's cost analysis; None where a backend has none."""
    analysis = compiled.cost_analysis()
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    value = (analysis or {}).get("flops")
    return float(value) if value is not None and value > 0 else None


def _flops(jaxpr: core.Jaxpr) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracting)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_flops(jaxpr) for jaxpr in _inner(equation.params)]
    if name == "cond" and equation.params.get("branches_platforms"):
        return min((count for count in inner if count > 0), default=0.0)
    if name == "cond":
        return max(inner, default=0.0)
    times = 1
    if name == "scan":
        times = equation.params["length"]
    elif name == "shard_map":
        times = equation.params["mesh"].size
    return times * sum(inner)


def _of_convolution(equation: core.JaxprEqn) -> float:
    """2 x outputs x the kernel's window x input channels of a group, without the zeros that a stride dilates by."""
    kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    numbers = equation.params["dimension_numbers"]
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
    dilated = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(out) * window / dilated


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs inside of an equation: bodies of loops, branches, calls."""
    for value in params.values():
        for entry in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(entry, core.ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, core.Jaxpr):
                yield entry
