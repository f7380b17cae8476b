"""Quantize before a tensor is moved: a Transpose or Reshape of int8 moves a quarter of the bytes."""

from __future__ import annotations

import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, producer
from qdqpatch.exporter.grids import Grid

MOVES = ("Transpose", "Reshape")


def quantize_before_moves(rewriter: Rewriter, value: ir.Value, grid: Grid, offset: bool = False) -> ir.Value:
    """Return a tensor's integers, quantized before the Transposes and Reshapes that nothing else reads."""
    for operator in MOVES:
        move = producer(value, operator)
        if move is not None and move.inputs[0] is not None:
            integers = quantize_before_moves(rewriter, move.inputs[0], grid, offset)
            return rewriter.op(operator, [integers, *move.inputs[1:]], dict(move.attributes))
    return rewriter.quantize(value, grid, offset)
