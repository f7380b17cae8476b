"""Attention on ONNX Runtime: both matmuls from integers to fp32, and only integers transposed.

1/sqrt(d) is in the scale with which the first product leaves its integers, at no cost. The left operands are
uint8 and the right ones int8, for processors with VNNI: two tensors of uint8 take twice the time there.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, path
from qdqpatch.exporter.grids import Grid
from qdqpatch.exporter.rules.integer_linear import Operand, multiply
from qdqpatch.exporter.rules.push_quantize import quantize_before_moves
from qdqpatch.exporter.rules.qdq_attention import (
    HEADS_FIRST,
    Heads,
    QDQAttention,
    operand_grids,
    operands,
    softmax,
)
from qdqpatch.exporter.symbolic_operators import ATTENTION, DOMAIN


@dataclass(frozen=True)
class IntegerAttention:
    """Attention whose four operands are all quantized; others are left to `QDQAttention`.

    Attributes:
        offset: Whether keys and values are uint8 too, 128 higher, for processors without VNNI: their products
            of uint8 and int8 saturate (`qdqpatch/engines/vnni.py`).
    """

    offset: bool = False
    operator: str = ATTENTION
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        name, grids = path(node), operand_grids(rewriter, node)
        q, k, v, a = (grids[operand] for operand in "qkva")
        if q is None or k is None or v is None or a is None:
            QDQAttention().rewrite(rewriter, node)
            return
        query, key, value, mask = operands(node)
        integers, _, offset = self._operand(rewriter, query, q, offset=True)
        left = integers, q.times(node.attributes["scaling"].as_float()), offset
        right = self._operand(rewriter, key, k, self.offset, keys_last=True)
        scores = multiply(rewriter, left, right, None, f"{name}.query_x_key")
        probabilities = softmax(rewriter, scores, mask)
        left = rewriter.quantize(probabilities, a, offset=True), a, True
        right = self._operand(rewriter, value, v, self.offset)
        context = multiply(rewriter, left, right, None, f"{name}.probabilities_x_value")
        context = rewriter.op("Transpose", [context], {"perm": HEADS_FIRST})
        rewriter.replace(node, [context, probabilities])

    def _operand(
        self, rewriter: Rewriter, heads: Heads, grid: Grid, offset: bool, keys_last: bool = False
    ) -> Operand:
        integers = quantize_before_moves(rewriter, heads.value, grid, offset)
        return heads.turned(rewriter, integers, keys_last), grid, offset
