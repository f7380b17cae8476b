"""A graph that is being rewritten: new nodes, shared constants, and Q/DQ pairs by their grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape
from torch import nn

from qdqpatch.exporter.grids import Grid
from qdqpatch.nn.names import FACTORS

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


class Rewriter:
    """Replaces nodes of a graph, one at a time.

    Args:
        model: The graph, changed in place.
        torch_model: The model that it was traced from.
    """

    def __init__(self, model: ir.Model, torch_model: nn.Module) -> None:
        self.model = model
        self.torch_model = torch_model
        self._tape = Tape()
        self._quantized: dict[tuple[ir.Value, str | None, str | None], ir.Value] = {}
        self._scaled: dict[tuple[ir.Value, str | None], ir.Value] = {}

    @property
    def graph(self) -> ir.Graph:
        """The graph itself."""
        return self.model.graph

    def nodes(self, operator: str, domain: str = "") -> list[ir.Node]:
        """Return the nodes of an operator, in order."""
        return [node for node in self.graph if node.op_type == operator and node.domain == domain]

    def module(self, node: ir.Node) -> nn.Module:
        """Return the module that a node of the domain `qdqpatch` stands for."""
        return self.torch_model.get_submodule(path(node))

    def op(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        name: str | None = None,
    ) -> ir.Value:
        """Add a node with one output, before the node that is replaced."""
        return self._tape.op(operator, inputs, attributes, domain=domain, name=name)

    def replace(self, node: ir.Node, outputs: Sequence[ir.Value]) -> None:
        """Put the nodes that were added in the place of one."""
        for old, new in zip(node.outputs, outputs, strict=True):
            new.shape, new.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(
            self.graph, node, [node], self._tape.nodes, node.outputs[: len(outputs)], outputs
        )
        self._tape = Tape()

    def constant(self, array: npt.NDArray[Any], name: str) -> ir.Value:
        """Return an initializer; one of the same name is taken for the same."""
        value = self.graph.initializers.get(name)
        if value is None:
            tensor = ir.tensor(np.asarray(array, order="C"), name=name)
            value = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            self.graph.register_initializer(value)
        return value

    def scaled(self, value: ir.Value, factors: npt.NDArray[np.float32]) -> ir.Value:
        """Return a tensor times a factor for each index of its last axis; equal ones are computed once."""
        digest = hashlib.sha256(factors.tobytes()).hexdigest()[:16]
        constant = self.constant(factors, f"{FACTORS}{digest}")
        key = (value, constant.name)
        if key not in self._scaled:
            self._scaled[key] = self.op("Mul", [value, constant])
        return self._scaled[key]

    def quantize(self, value: ir.Value, grid: Grid, offset: bool = False) -> ir.Value:
        """Return the integers of a tensor; equal ones are computed once.

        Args:
            value: The tensor.
            grid: Its levels.
            offset: Whether to store signed levels as uint8, 128 higher: the same grid.
        """
        scale, zero = self.scale(grid), self.zero_point(grid, offset)
        key = (value, scale.name, zero.name)
        if key not in self._quantized:
            self._quantized[key] = self.op("QuantizeLinear", [value, scale, zero])
        return self._quantized[key]

    def dequantize(self, integers: ir.Value, grid: Grid, offset: bool = False, name: str = "") -> ir.Value:
        """Return the values of integers.

        Args:
            integers: As `quantize` made them, or a weight's.
            grid: Their levels.
            offset: As it was given to `quantize`.
            name: What the constants of a weight are called after.
        """
        attributes = None if grid.axis is None else {"axis": grid.axis}
        inputs = [integers, self.scale(grid, name), self.zero_point(grid, offset, name)]
        return self.op("DequantizeLinear", inputs, attributes)

    def rounded(self, value: ir.Value, grid: Grid, offset: bool = False) -> ir.Value:
        """Return a tensor rounded to levels, by a Q/DQ pair; integers with a zero point are uint8."""
        offset = offset or grid.zero_point is not None
        return self.dequantize(self.quantize(value, grid, offset), grid, offset)

    def scale(self, grid: Grid, name: str = "") -> ir.Value:
        """Return a grid's scale as an initializer: equal ones are one, but a weight's is its own."""
        if name:
            return self.constant(grid.scale, f"{name}_scale")
        return self.constant(grid.scale, f"scale_{grid.scale.tobytes().hex()}")

    def zero_point(self, grid: Grid, offset: bool = False, name: str = "") -> ir.Value:
        """Return a grid's zero point as an initializer; a weight's is its own.

        ONNX Runtime fails to take one as uint8 that weights share, where it takes them as uint8.
        """
        dtype = grid.stored(offset)
        zero = (grid.zero_point or 0) + (128 if offset and not grid.unsigned else 0)
        if name:
            return self.constant(np.full(grid.scale.shape, zero, dtype), f"{name}_zero_point")
        return self.constant(np.array(zero, dtype), f"zero_point_{dtype.name}_{zero}")


def path(node: ir.Node) -> str:
    """Return the path of the module that a node of the domain `qdqpatch` stands for."""
    return node.attributes["path"].as_string()


def producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node that computes a value, if it is of that operator and nothing else reads the value."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != operator or value is None or len(value.uses()) != 1:
        return None
    return node
