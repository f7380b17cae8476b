"""A product of two quantized tensors that the model computes itself, as ONNX Runtime's MatMulIntegerToFloat.

DeBERTa, RoFormer and others do not ask transformers for attention's function: their products are plain
MatMuls between two quantizers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter
from qdqpatch.exporter.grids import Grid
from qdqpatch.exporter.rules.integer_linear import multiply
from qdqpatch.exporter.rules.push_quantize import quantize_before_moves


@dataclass(frozen=True)
class IntegerProduct:
    """MatMul of DequantizeLinear(QuantizeLinear(a)) and DequantizeLinear(QuantizeLinear(b)).

    Attributes:
        offset: Whether the right operand is uint8 too, as in `IntegerAttention`.
    """

    offset: bool = False
    operator: str = "MatMul"
    domain: str = ""

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator; one of whose operands is float is left as it is."""
        left, right = (quantized(value) for value in node.inputs)
        if left is None or right is None:
            return
        product = multiply(
            rewriter,
            (quantize_before_moves(rewriter, *left, offset=True), left[1], True),
            (quantize_before_moves(rewriter, *right, self.offset), right[1], self.offset),
            None,
            node.name or "",
        )
        rewriter.replace(node, [product])


def quantized(value: ir.Value | None) -> tuple[ir.Value, Grid] | None:
    """Return what a Q/DQ pair with one scale quantizes, and its grid; None if there is no such pair."""
    dequantize = None if value is None else value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0] is None:
        return None
    quantize, scale, zero = dequantize.inputs[0].producer(), dequantize.inputs[1], dequantize.inputs[2]
    if quantize is None or quantize.op_type != "QuantizeLinear" or quantize.inputs[0] is None:
        return None
    if scale is None or zero is None or scale.const_value is None or zero.const_value is None:
        return None
    if scale.const_value.size != 1:
        return None
    zeros = zero.const_value.numpy()
    scales, stored = scale.const_value.numpy(), int(zeros)
    if zeros.dtype == np.uint8 and stored == 0:
        return quantize.inputs[0], Grid(scales, unsigned=True)
    zero_point = stored - (128 if zeros.dtype == np.uint8 else 0)
    return quantize.inputs[0], Grid(scales, zero_point=zero_point or None)
