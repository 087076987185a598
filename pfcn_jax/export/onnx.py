"""A function of static shapes as an ONNX model, node by node: no loop, no call, nothing computed that is constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core

from pfcn_jax.errors import UserError
from pfcn_jax.export.onnx_graph import Graph, Operand, Value
from pfcn_jax.export.onnx_rules import RULES, refuse

INSTALL = "pip install onnx==1.23.2 onnxruntime==1.32.0"
# Primitives that call a function, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vmap_call": "call",
}  # fmt: skip


def convert(
    function: Callable[..., Mapping[str, Any]],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    metadata: Mapping[str, str],
) -> Any:
    """The ONNX model of `function(weights, *inputs) -> arrays by name`; the weights are inside.

    Raises:
      UserError: the package `onnx` is not installed, or the function needs an operation that has no rule.
    """
    try:
        graph = Graph()
    except ImportError as error:
        raise UserError(f"ONNX files are written with another package: `{INSTALL}` ({error})") from error
    abstract = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    closed, out_tree = jax.make_jaxpr(function, return_shape=True)(abstract, *inputs.values())
    arguments: list[Operand] = [np.asarray(array) for array in jax.tree.leaves(dict(weights))]
    arguments += [graph.add_input(name, spec.shape, spec.dtype) for name, spec in inputs.items()]
    results = jax.tree.unflatten(jax.tree.structure(out_tree), evaluate(graph, closed, arguments))
    return graph.model(results, dict(metadata))


def evaluate(graph: Graph, closed: core.ClosedJaxpr, arguments: list[Operand]) -> list[Operand]:
    """Results of a traced function. What follows from known arrays alone is computed here; the rest becomes nodes."""
    jaxpr = closed.jaxpr
    known: dict[Any, Operand] = dict(zip(jaxpr.constvars, map(np.asarray, closed.consts)))
    known.update(zip(jaxpr.invars, arguments))

    def read(variable: Any) -> Operand:
        if isinstance(variable, core.Literal):
            return np.asarray(variable.val, getattr(variable.aval, "dtype", None))
        return known[variable]

    for equation in jaxpr.eqns:
        results = _apply(graph, equation, [read(variable) for variable in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(graph: Graph, equation: Any, operands: list[Operand]) -> list[Operand]:
    name, parameters = equation.primitive.name, equation.params
    if name in _CALLS:
        return evaluate(graph, _closed(parameters[_CALLS[name]]), operands)
    if name == "platform_index":
        return [np.asarray(_cpu_branch(parameters["platforms"]), np.int32)]
    if name == "cond" and not isinstance(operands[0], Value):
        branch = parameters["branches"][int(operands[0])]
        return evaluate(graph, branch, operands[1:])
    if name == "scan":
        return _unroll(graph, parameters, operands)
    if not any(isinstance(operand, Value) for operand in operands):
        if name == "broadcast_in_dim":  # without a copy
            return RULES[name](graph, operands, parameters)
        found = equation.primitive.bind(*operands, **parameters)
        found = found if equation.primitive.multiple_results else [found]
        return [np.asarray(array) for array in found]
    if name not in RULES:
        raise refuse(f"the operation {name!r}")
    return RULES[name](graph, operands, parameters)


def _closed(function: Any) -> core.ClosedJaxpr:
    return function if isinstance(function, core.ClosedJaxpr) else core.ClosedJaxpr(function, ())


def _cpu_branch(platforms: tuple[Any, ...]) -> int:
    """The branch that `by_platform` takes on a CPU; None stands for the default."""
    for_cpu = [place for place, names in enumerate(platforms) if names is not None and "cpu" in names]
    return for_cpu[0] if for_cpu else platforms.index(None)


def _unroll(graph: Graph, parameters: Mapping[str, Any], operands: list[Operand]) -> list[Operand]:
    """A `scan` as its steps one after the other: runtimes differ in what they make of loops."""
    body, length = _closed(parameters["jaxpr"]), parameters["length"]
    if "ft_in" in parameters:  # JAX 0.12
        constants, carry, rows = (list(part) for part in parameters["ft_in"].update(operands).unpack())
    else:
        first, last = parameters["num_consts"], parameters["num_consts"] + parameters["num_carry"]
        constants, carry, rows = operands[:first], operands[first:last], operands[last:]
    if len(body.out_avals) != len(carry):
        raise refuse("a loop that collects results")
    steps = range(length)[::-1] if parameters["reverse"] else range(length)
    for step in steps:
        carry = evaluate(graph, body, [*constants, *carry, *(_row(graph, value, step) for value in rows)])
    return carry


def _row(graph: Graph, operand: Operand, index: int) -> Operand:
    if not isinstance(operand, Value):
        return operand[index]
    ends = [index + 1, *operand.shape[1:]]
    row = RULES["slice"](graph, [operand], {
        "start_indices": [index] + [0] * len(operand.shape[1:]), "limit_indices": ends, "strides": None,
    })[0]  # fmt: skip
    return graph.reshape(row, operand.shape[1:])
