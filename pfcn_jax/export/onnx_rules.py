"""JAX's primitives as nodes of ONNX: one rule for each that a prediction is made of.

A rule takes the graph, the operands and the primitive's parameters, and returns the results. Primitives that call
other functions, and constants, are the caller's (`export/onnx.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pfcn_jax.errors import UserError
from pfcn_jax.export.onnx_graph import Graph, Operand, Shape, Value

Rule = Callable[[Graph, list[Operand], Mapping[str, Any]], list[Operand]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule under the names of its primitives."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def refuse(what: str) -> UserError:
    """The error about an operation that has no rule."""
    return UserError(f"ONNX: this model needs {what}, for which there is no rule yet; export .pfcn instead")


# ------------------------------------------------------------------------------------------------------- elementwise
_SAME_TYPE = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
    "neg": "Neg", "abs": "Abs", "sign": "Sign", "sqrt": "Sqrt", "floor": "Floor", "ceil": "Ceil", "exp": "Exp",
    "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "and": "And", "or": "Or", "not": "Not",
}  # fmt: skip
_COMPARISONS = {"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"}
_ALIASES = ("stop_gradient", "copy", "copy_p", "optimization_barrier")


def _elementwise(operator: str, dtype: Any = None) -> Rule:
    return lambda graph, operands, parameters: [graph.elementwise(operator, operands, dtype)]


RULES.update({name: _elementwise(operator) for name, operator in _SAME_TYPE.items()})
RULES.update({name: _elementwise(operator, np.bool_) for name, operator in _COMPARISONS.items()})
RULES.update(dict.fromkeys(_ALIASES, lambda graph, operands, parameters: operands))


@rule("ne")
def _not_equal(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.elementwise("Not", [graph.elementwise("Equal", operands, np.bool_)])]


@rule("rem")
def _remainder(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    quotient = graph.elementwise("Div", operands)  # of integers: rounded toward zero
    if quotient.dtype.kind != "i":
        raise refuse("a remainder of floats")
    return [graph.elementwise("Sub", [operands[0], graph.elementwise("Mul", [quotient, operands[1]])])]


@rule("square")
def _square(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.elementwise("Mul", [operands[0], operands[0]])]


@rule("integer_pow")
def _integer_power(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.elementwise("Pow", [operands[0], np.array(parameters["y"], operands[0].dtype)])]


@rule("rsqrt")
def _reciprocal_root(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", operands)])]


@rule("erfc")
def _one_minus_erf(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.elementwise("Sub", [np.ones((), operands[0].dtype), graph.elementwise("Erf", operands)])]


@rule("clamp")
def _clamp(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    low, value, high = operands
    return [graph.elementwise("Min", [graph.elementwise("Max", [value, low]), high])]


@rule("select_n")
def _select(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    if len(operands) != 3 or operands[0].dtype != np.bool_:
        raise refuse("a selection by number")
    return [graph.elementwise("Where", [operands[0], operands[2], operands[1]], operands[1].dtype)]


@rule("convert_element_type")
def _convert(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    same = operands[0].dtype == parameters["new_dtype"]
    return operands if same else [graph.cast(operands[0], parameters["new_dtype"])]


# ------------------------------------------------------------------------------------------------------------ shapes
@rule("broadcast_in_dim")
def _broadcast(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    shape, axes = tuple(parameters["shape"]), tuple(parameters["broadcast_dimensions"])
    operand = operands[0]
    if isinstance(operand, Value):
        return [graph.broadcast(operand, shape, axes)]
    thin = [1] * len(shape)
    for axis, length in zip(axes, operand.shape):
        thin[axis] = length
    return [np.broadcast_to(operand.reshape(thin), shape)]


@rule("reshape")
def _reshape(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.reshape(operands[0], tuple(parameters["new_sizes"]))]


@rule("squeeze")
def _squeeze(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    kept = [length for axis, length in enumerate(operands[0].shape) if axis not in parameters["dimensions"]]
    return [graph.reshape(operands[0], tuple(kept))]


@rule("transpose")
def _transpose(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    return [graph.transpose(operands[0], tuple(parameters["permutation"]))]


@rule("concatenate")
def _concatenate(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    axis = parameters["dimension"]
    shape = list(operands[0].shape)
    shape[axis] = sum(operand.shape[axis] for operand in operands)
    return [graph.add("Concat", [graph.whole(o) for o in operands], tuple(shape), operands[0].dtype, axis=axis)]


@rule("stack")
def _stack(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    axis, shape = parameters["axis"], operands[0].shape
    longer = (*shape[:axis], 1, *shape[axis:])
    return _concatenate(graph, [graph.reshape(operand, longer) for operand in operands], {"dimension": axis})


@rule("slice")
def _slice(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    starts, ends = parameters["start_indices"], parameters["limit_indices"]
    return [cut(graph, operands[0], starts, ends, parameters["strides"] or (1,) * len(starts))]


def cut(graph: Graph, operand: Operand, starts: Sequence[int], ends: Sequence[int], steps: Sequence[int]) -> Value:
    """operand[start:end:step] on every axis."""
    shape = tuple(-(-(end - start) // step) for start, end, step in zip(starts, ends, steps))
    axes = [axis for axis in range(len(shape)) if shape[axis] != operand.shape[axis]]
    name = graph.whole(operand)
    if axes:
        chosen = ([int(values[axis]) for axis in axes] for values in (starts, ends, range(len(shape)), steps))
        name = graph.add("Slice", [name, *(graph.integers(*c) for c in chosen)], shape, operand.dtype).name
    return Value(name, shape, operand.dtype, shape)


@rule("split")
def _split(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    axis, parts, start = parameters["axis"], [], 0
    for size in parameters["sizes"]:
        starts, ends = [0] * len(operands[0].shape), list(operands[0].shape)
        starts[axis], ends[axis] = start, start + size
        parts.append(cut(graph, operands[0], starts, ends, [1] * len(starts)))
        start += size
    return list(parts)


@rule("pad")
def _pad(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    before, after, between = (np.array(values, int) for values in zip(*parameters["padding_config"]))
    if (between != 0).any() or (before < 0).any() or (after < 0).any():
        raise refuse("padding that cuts or spreads")
    shape = tuple(int(length) for length in np.array(operands[0].shape) + before + after)
    names = [graph.whole(operands[0]), graph.integers(*before, *after), graph.whole(operands[1])]
    return [graph.add("Pad", names, shape, operands[0].dtype)]


@rule("rev")
def _reverse(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    value = operands[0]
    for axis in parameters["dimensions"]:
        order = np.arange(value.shape[axis])[::-1]
        value = graph.add("Gather", [graph.whole(value), graph.constant(order)], value.shape, value.dtype, axis=axis)
    return [value]


@rule("gather")
def _gather(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    """Rows of the first axis, in every form that indexing by one array of a batch of one takes."""
    rows, index = operands
    numbers, sizes = parameters["dimension_numbers"], parameters["slice_sizes"]
    batch = tuple(numbers.operand_batching_dims)
    kept = [axis for axis in range(len(rows.shape)) if axis not in batch]
    found = index.shape[:-1]
    out = found + tuple(rows.shape[axis] for axis in kept[1:])
    by_rows = (
        index.shape[-1] == 1
        and all(rows.shape[axis] == 1 for axis in batch)
        and tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims) == (kept[0],)
        and all(sizes[axis] == rows.shape[axis] for axis in kept[1:])
        and tuple(numbers.offset_dims) == tuple(range(len(found), len(out)))
    )
    if not by_rows:
        raise refuse("a gather of other things than rows")
    last = rows.shape[kept[0]] - 1
    if parameters["mode"].name == "CLIP":
        index = _clamp(graph, [np.array(0, index.dtype), index, np.array(last, index.dtype)], {})[0]
    elif parameters["mode"].name != "PROMISE_IN_BOUNDS":
        raise refuse("a gather that fills what is out of bounds")
    table = graph.reshape(rows, tuple(rows.shape[axis] for axis in kept))
    names = [table.name, graph.reshape(index, found).name]
    return [graph.add("Gather", names, out, rows.dtype, axis=0)]


# ------------------------------------------------------------------------------------------- products, sums, orders
@rule("conv_general_dilated")
def _convolution(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    numbers = parameters["dimension_numbers"]
    x, kernel = (
        graph.transpose(operand, tuple(order)) for operand, order in zip(operands, (numbers.lhs_spec, numbers.rhs_spec))
    )
    if set(parameters["lhs_dilation"]) != {1} or parameters["batch_group_count"] != 1:
        raise refuse("a transposed convolution")
    before, after = zip(*parameters["padding"])
    steps, dilation = tuple(parameters["window_strides"]), tuple(parameters["rhs_dilation"])
    lengths = zip(x.shape[2:], kernel.shape[2:], before, after, steps, dilation)
    sides = [(n + a + b - (k - 1) * d - 1) // s + 1 for n, k, a, b, s, d in lengths]
    made = graph.add(
        "Conv",
        [graph.whole(x), graph.whole(kernel)],
        (x.shape[0], kernel.shape[0], *sides),
        x.dtype,
        strides=list(steps),
        pads=[*map(int, before), *map(int, after)],
        dilations=list(dilation),
        group=parameters["feature_group_count"],
    )
    return [graph.transpose(made, tuple(int(axis) for axis in np.argsort(numbers.out_spec)))]


@rule("dot_general")
def _product(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    """A product of stacks of matrices: [batch, rows, contracted] @ [batch, contracted, columns]."""
    contracted, batch = parameters["dimension_numbers"]
    matrices: list[Operand] = []
    free_shapes: list[Shape] = []
    common = tuple(operands[0].shape[axis] for axis in batch[0])
    length = int(np.prod([operands[0].shape[axis] for axis in contracted[0]]))
    for side, operand in enumerate(operands):
        free = [a for a in range(len(operand.shape)) if a not in contracted[side] and a not in batch[side]]
        inner = [*free, *contracted[side]] if side == 0 else [*contracted[side], *free]
        free_shapes.append(tuple(operand.shape[axis] for axis in free))
        count = int(np.prod(free_shapes[-1]))
        matrix = graph.transpose(operand, (*batch[side], *inner))
        shape = (*common, count, length) if side == 0 else (*common, length, count)
        matrices.append(graph.reshape(matrix, shape) if isinstance(matrix, Value) else matrix.reshape(shape))
    rows, columns = matrices[0].shape[-2], matrices[1].shape[-1]
    made = graph.add("MatMul", [graph.whole(m) for m in matrices], (*common, rows, columns), operands[0].dtype)
    return [graph.reshape(made, (*common, *free_shapes[0], *free_shapes[1]))]


def _reduction(operator: str) -> Rule:
    def reduce(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
        value, axes = operands[0], [int(axis) for axis in parameters["axes"]]
        shape = tuple(length for axis, length in enumerate(value.shape) if axis not in axes)
        name = graph.whole(graph.cast(value, np.int32) if value.dtype == np.bool_ else value)
        dtype = np.dtype(np.int32) if value.dtype == np.bool_ else value.dtype
        made = graph.add(operator, [name, graph.integers(*axes)], shape, dtype, keepdims=0)
        return [graph.cast(made, np.bool_) if value.dtype == np.bool_ else made]

    return reduce


RULES.update(
    reduce_sum=_reduction("ReduceSum"),
    reduce_max=_reduction("ReduceMax"),
    reduce_min=_reduction("ReduceMin"),
    reduce_or=_reduction("ReduceMax"),
    reduce_and=_reduction("ReduceMin"),
)


@rule("argmax")
def _argmax(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    """The first place of the maximum, also where a runtime's ArgMax returns any of several."""
    value, axes = operands[0], tuple(int(axis) for axis in parameters["axes"])
    number = graph.cast(value, np.int32) if value.dtype == np.bool_ else value
    thin = tuple(1 if axis in axes else length for axis, length in enumerate(value.shape))
    largest = graph.reshape(_reduction("ReduceMax")(graph, [number], {"axes": axes})[0], thin)
    is_largest = graph.elementwise("Equal", [number, largest], np.bool_)
    length = value.shape[axes[0]]
    place = np.arange(length, dtype=parameters["index_dtype"])
    place = place.reshape([length if axis in axes else 1 for axis in range(len(value.shape))])
    places = graph.elementwise("Where", [is_largest, place, np.array(length - 1, place.dtype)], place.dtype)
    return _reduction("ReduceMin")(graph, [places], {"axes": axes})


def _best(graph: Graph, value: Operand, count: int, axis: int, *, largest: bool) -> list[Value]:
    """The `count` best of an axis in order, the first of equal ones first, and their places."""
    shape = list(value.shape)
    shape[axis] = count
    outputs = [(tuple(shape), value.dtype), (tuple(shape), np.dtype(np.int64))]
    names = [graph.whole(value), graph.integers(count)]
    return graph.add_many("TopK", names, outputs, axis=axis, largest=int(largest), sorted=1)


@rule("top_k")
def _top_k(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    axis = int(parameters.get("axis", len(operands[0].shape) - 1))
    best, place = _best(graph, operands[0], parameters["k"], axis, largest=True)
    return [best, graph.cast(place, np.int32)]


@rule("sort")
def _sort(graph: Graph, operands: list[Operand], parameters: Mapping[str, Any]) -> list[Operand]:
    """Equal keys keep their order, also where a runtime's TopK does not: it sorts ranks, which are all different."""
    key, length = operands[0], operands[0].shape[0]
    if len(key.shape) != 1 or parameters["num_keys"] != 1:
        raise refuse("a sort of more than one line")
    number = graph.cast(key, np.int32) if key.dtype == np.bool_ else key
    row, column = graph.reshape(number, (length, 1)), graph.reshape(number, (1, length))
    earlier = np.tri(length, k=-1, dtype=bool)  # [i, j]: j comes before i
    tied = graph.elementwise("And", [graph.elementwise("Equal", [column, row], np.bool_), earlier])
    before = graph.elementwise("Or", [graph.elementwise("Less", [column, row], np.bool_), tied])
    rank = _reduction("ReduceSum")(graph, [graph.cast(before, np.int32)], {"axes": (1,)})[0]
    place = _best(graph, rank, length, 0, largest=False)[1]
    return [graph.add("Gather", [graph.whole(o), place.name], o.shape, o.dtype, axis=0) for o in operands]
