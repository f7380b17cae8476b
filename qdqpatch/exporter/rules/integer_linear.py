"""A quantized Linear as ONNX Runtime's MatMulIntegerToFloat: one kernel from integers to fp32, bias and all.

ONNX Runtime finds the same kernel in Q/DQ pairs, but leaves the bias to an Add of its own, which reads and
writes the whole tensor again. The input is uint8: the CPU's dot products take unsigned times signed, and for
signed times signed ONNX Runtime 1.32 has a kernel that takes ten times as long (AMD EPYC with VNNI).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qdqpatch.exporter.graph import MICROSOFT, Rewriter, path
from qdqpatch.exporter.grids import Grid, activation_grid, weight_grid
from qdqpatch.exporter.rules.push_quantize import quantize_before_moves
from qdqpatch.exporter.rules.qdq_linear import QDQLinear, scaled_input
from qdqpatch.exporter.symbolic_operators import DOMAIN, LINEAR
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, WEIGHT
from qdqpatch.nn.pairs import pairs_fit


@dataclass(frozen=True)
class IntegerLinear:
    """A Linear with both quantizers on; others are left to `QDQLinear`.

    Attributes:
        offset: Whether the file is for processors without VNNI, whose products of uint8 and int8 saturate: a
            weight with a pair of levels too large for them is stored as uint8 then, 128 higher, for which
            there is a slower kernel that does not.
    """

    offset: bool = False
    operator: str = LINEAR
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        name = path(node)
        linear = rewriter.torch_model.get_submodule(name)
        assert isinstance(linear, QuantLinear)
        if not (linear._input_quantizer.is_enabled and linear._weight_quantizer.is_enabled):
            # Of DequantizeLinear and MatMul ONNX Runtime makes a kernel that quantizes the input as well.
            QDQLinear(constant_weights=not linear._input_quantizer.is_enabled).rewrite(rewriter, node)
            return
        inputs = activation_grid(linear._input_quantizer, f"{name}.{INPUT}")
        weights, integers = weight_grid(linear._weight_quantizer, linear.weight, f"{name}.{WEIGHT}")
        stored = integers.T
        offset = self.offset and (weights.unsigned or not pairs_fit(integers))
        if offset and not weights.unsigned:
            stored = (stored.astype(np.int16) + 128).astype(np.uint8)
        tensor = scaled_input(rewriter, node, linear)
        assert tensor is not None
        bias = None
        if linear.bias is not None:
            bias = rewriter.constant(linear.bias.detach().numpy(), f"{name}.bias")
        product = multiply(
            rewriter,
            (quantize_before_moves(rewriter, tensor, inputs, offset=True), inputs, True),
            (rewriter.constant(stored, f"{name}.weight_quantized"), weights, offset),
            bias,
            name,
        )
        rewriter.replace(node, [product])


Operand = tuple[ir.Value, Grid, bool]
"""Integers, their grid, and whether they are stored 128 higher."""


def multiply(rewriter: Rewriter, left: Operand, right: Operand, bias: ir.Value | None, name: str) -> ir.Value:
    """Return the product of two tensors of integers in fp32, plus a bias."""
    (a, a_grid, a_offset), (b, b_grid, b_offset) = left, right
    inputs = [
        a,
        b,
        rewriter.scale(a_grid),
        rewriter.scale(b_grid, f"{name}.weight"),
        rewriter.zero_point(a_grid, a_offset),
        rewriter.zero_point(b_grid, b_offset, f"{name}.weight"),
        *([] if bias is None else [bias]),
    ]
    return rewriter.op("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=name)
