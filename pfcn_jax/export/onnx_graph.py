"""A graph of ONNX nodes in the making: values with shapes, constants that are stored once.

A value may be smaller than the shape that it stands for: a broadcast axis stays at length 1 until a node needs all of
it, because ONNX's elementwise operators broadcast by themselves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pfcn_jax.errors import UserError

Shape = tuple[int, ...]
# Opset 18 and its file format: read by ONNX Runtime from 1.14 (2023) on.
OPSET, IR_VERSION = 18, 8
_TYPES = ("float32", "int32", "int64", "uint8", "bool")


@dataclasses.dataclass(frozen=True)
class Value:
    """Output of a node, or an input of the graph."""

    name: str
    shape: Shape  # that it stands for
    dtype: np.dtype
    stored: Shape  # of the tensor: as `shape`, with 1 on the axes that are still to be broadcast


Operand = Value | np.ndarray  # an array is known when the graph is made


class Graph:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._to_tensor = helper, numpy_helper.from_array
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._made: dict[tuple[Any, ...], list[Value]] = {}
        self._constants: dict[tuple[str, Shape, bytes], Any] = {}

    def add_input(self, name: str, shape: Shape, dtype: Any) -> Value:
        """Declares an input."""
        self._inputs.append(self._helper.make_tensor_value_info(name, _element(np.dtype(dtype)), shape))
        return Value(name, shape, np.dtype(dtype), shape)

    def add(self, operator: str, inputs: list[str], shape: Shape, dtype: Any, **attributes: int | list[int]) -> Value:
        """Adds a node with one output."""
        return self.add_many(operator, inputs, [(shape, dtype)], **attributes)[0]

    def add_many(
        self, operator: str, inputs: list[str], outputs: list[tuple[Shape, Any]], **attributes: int | list[int]
    ) -> list[Value]:
        """Adds a node with outputs of these shapes and types; a node that is there already is used again."""
        key = (operator, *inputs, *sorted((name, str(value)) for name, value in attributes.items()))
        if key not in self._made:
            names = [f"{operator.lower()}_{len(self._nodes)}_{place}" for place in range(len(outputs))]
            node = self._helper.make_node(operator, inputs, names)
            node.attribute.extend(
                self._helper.make_attribute(name, value) for name, value in sorted(attributes.items())
            )
            self._nodes.append(node)
            self._made[key] = [Value(n, shape, np.dtype(dtype), shape) for n, (shape, dtype) in zip(names, outputs)]
        return self._made[key]

    def constant(self, array: np.ndarray) -> str:
        """Name of a stored array; equal arrays are stored once."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        _element(array.dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._to_tensor(array, f"constant_{len(self._constants)}")
        return self._constants[key].name

    def integers(self, *values: int) -> str:
        """Name of a constant list of int64, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def small(self, operand: Operand) -> tuple[str, Shape]:
        """Name of the operand and the shape it is stored with, for an operator that broadcasts."""
        if isinstance(operand, Value):
            return operand.name, operand.stored
        array = operand[tuple(slice(0, 1) if not stride else slice(None) for stride in operand.strides)]
        return self.constant(array), array.shape

    def whole(self, operand: Operand) -> str:
        """Name of the operand in the shape that it stands for."""
        if not isinstance(operand, Value):
            return self.constant(operand)
        if operand.stored == operand.shape:
            return operand.name
        return self.add("Expand", [operand.name, self.integers(*operand.shape)], operand.shape, operand.dtype).name

    def elementwise(self, operator: str, operands: list[Operand], dtype: Any = None) -> Value:
        """An operator that broadcasts. `dtype`: of the result; None: of the first operand."""
        names, stored = zip(*(self.small(operand) for operand in operands))
        shape = np.broadcast_shapes(*(operand.shape for operand in operands))
        made = self.add(operator, list(names), np.broadcast_shapes(*stored), dtype or operands[0].dtype)
        return dataclasses.replace(made, shape=shape)

    def cast(self, operand: Operand, dtype: Any) -> Value:
        """The operand as another type."""
        name, stored = self.small(operand)
        made = self.add("Cast", [name], stored, dtype, to=_element(np.dtype(dtype)))
        return dataclasses.replace(made, shape=operand.shape)

    def reshape(self, operand: Operand, shape: Shape) -> Value:
        """The operand's elements, row by row, in another shape."""
        name = self.whole(operand)
        if isinstance(operand, Value) and operand.shape == shape:
            return dataclasses.replace(operand, name=name, stored=shape)
        return self.add("Reshape", [name, self.integers(*shape)], shape, operand.dtype)

    def broadcast(self, operand: Value, shape: Shape, axes: tuple[int, ...]) -> Value:
        """The operand with its axes at `axes` of a larger shape; nothing is copied yet."""
        stored = [1] * len(shape)
        for axis, length in zip(axes, operand.stored):
            stored[axis] = length
        made = operand
        if operand.stored != tuple(stored):
            made = self.add("Reshape", [operand.name, self.integers(*stored)], tuple(stored), operand.dtype)
        return dataclasses.replace(made, shape=shape, stored=tuple(stored))

    def transpose(self, operand: Operand, order: tuple[int, ...]) -> Operand:
        """The operand with its axes in another order."""
        if order == tuple(range(len(order))):
            return operand
        if not isinstance(operand, Value):
            return operand.transpose(order)
        stored = tuple(operand.stored[axis] for axis in order)
        made = self.add("Transpose", [operand.name], stored, operand.dtype, perm=list(order))
        return dataclasses.replace(made, shape=tuple(operand.shape[axis] for axis in order))

    def model(self, outputs: dict[str, Operand], metadata: dict[str, str]) -> Any:
        """The ONNX model of the nodes that `outputs` need, checked."""
        import onnx

        nodes = self._named({name: self.whole(value) for name, value in outputs.items()})
        read = {name for node in nodes for name in node.input}
        graph = self._helper.make_graph(
            nodes,
            "pfcn_jax",
            self._inputs,
            [self._helper.make_tensor_value_info(name, _element(v.dtype), v.shape) for name, v in outputs.items()],
            [tensor for tensor in self._constants.values() if tensor.name in read],
        )
        opset = self._helper.make_opsetid("", OPSET)
        model = self._helper.make_model(graph, producer_name="pfcn_jax", opset_imports=[opset], ir_version=IR_VERSION)
        self._helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model

    def _named(self, sources: dict[str, str]) -> list[Any]:
        """The nodes that the outputs need, which give them their names (output -> source)."""
        produced = {name for node in self._nodes for name in node.output}
        renamed = {source: name for name, source in sources.items() if source in produced}
        nodes = _needed(self._nodes, set(sources.values()))
        for node in nodes:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        alias = {name: renamed.get(source, source) for name, source in sources.items()}
        return nodes + [
            self._helper.make_node("Identity", [source], [name]) for name, source in alias.items() if source != name
        ]


def _needed(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """The nodes that the wanted values depend on."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _element(dtype: np.dtype) -> int:
    """ONNX's number of a type."""
    from onnx import helper

    if dtype.name not in _TYPES:
        raise UserError(
            f"ONNX files are written in float32, and this model computes in {dtype.name}: "
            "export with --config.model.dtype=float32"
        )
    return int(helper.np_dtype_to_tensor_dtype(dtype))
