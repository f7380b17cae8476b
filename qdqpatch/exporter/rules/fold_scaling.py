"""Multiply attention's 1/sqrt(d) into the query projection.

Attention divides its scores, a tensor of `(batch, heads, queries, keys)`, by sqrt(d). The weights' scales
and the bias of the query's Linear can carry the factor instead, at no cost, and TensorRT wants nothing
between the first matmul and the softmax. The levels of the query stay the same: its scale has the factor too.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, producer
from qdqpatch.exporter.operators import ATTENTION, DOMAIN, LINEAR

FACTOR = "factor"
"""Attribute of a Linear: what its output is multiplied by; of an attention: what its query has been."""


@dataclass(frozen=True)
class FoldScaling:
    """Attention(Transpose(Reshape(QuantLinear(x)))) gives its factor to the Linear."""

    operator: str = ATTENTION
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Move the factor, where the query is a quantized Linear's output that nothing else reads."""
        transpose = producer(node.inputs[0], "Transpose")
        reshape = transpose and producer(transpose.inputs[0], "Reshape")
        linear = reshape and producer(reshape.inputs[0], LINEAR)
        if linear is not None:
            scaling = node.attributes["scaling"].as_float()
            linear.attributes[FACTOR] = ir.AttrFloat32(FACTOR, scaling)
            node.attributes[FACTOR] = ir.AttrFloat32(FACTOR, scaling)


def factor(node: ir.Node) -> float:
    """Return the factor of a node; 1 if it has none."""
    return node.attributes[FACTOR].as_float() if FACTOR in node.attributes else 1.0
