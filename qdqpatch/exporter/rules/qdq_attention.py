"""Attention as MatMul, Softmax and MatMul, with Q and DQ on every operand that is quantized.

1/sqrt(d) multiplies the query, whose grid has it too: TensorRT wants nothing between the first matmul and the
softmax, and the query is a smaller tensor than the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, path
from qdqpatch.exporter.grids import Grid, activation_grid
from qdqpatch.exporter.symbolic_operators import ATTENTION, DOMAIN
from qdqpatch.nn.names import MATMUL
from qdqpatch.nn.quantizer import TensorQuantizer

HEADS_FIRST = [0, 2, 1, 3]
KEYS_LAST = [0, 2, 3, 1]


@dataclass(frozen=True)
class QDQAttention:
    """softmax(DQ(Q(q)) DQ(Q(k))^T + mask), quantized once more, times DQ(Q(v))."""

    operator: str = ATTENTION
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        name = path(node)
        query, key, value, mask = operands(node)
        query = rewriter.op("Transpose", [query], {"perm": HEADS_FIRST})
        scaling = node.attributes["scaling"].as_float()
        query = rewriter.op(
            "Mul", [query, rewriter.constant(np.array(scaling, np.float32), f"scaling_{scaling}")]
        )
        grids = operand_grids(rewriter, node)
        query = _pair(rewriter, query, grids["q"] and grids["q"].times(scaling))
        key = _pair(rewriter, rewriter.op("Transpose", [key], {"perm": KEYS_LAST}), grids["k"])
        value = _pair(rewriter, rewriter.op("Transpose", [value], {"perm": HEADS_FIRST}), grids["v"])
        scores = rewriter.op("MatMul", [query, key], name=f"{name}.query_x_key")
        probabilities = softmax(rewriter, scores, mask)
        weights = _pair(rewriter, probabilities, grids["a"])
        context = rewriter.op("MatMul", [weights, value], name=f"{name}.probabilities_x_value")
        rewriter.replace(node, [rewriter.op("Transpose", [context], {"perm": HEADS_FIRST}), probabilities])


def _pair(rewriter: Rewriter, value: ir.Value, grid: Grid | None) -> ir.Value:
    return value if grid is None else rewriter.dequantize(rewriter.quantize(value, grid), grid)


def operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value | None]:
    """Return query, key and value as `(batch, positions, heads, head_dim)`, and the mask."""
    query, key, value, *mask = node.inputs
    return _heads_third(query), _heads_third(key), _heads_third(value), mask[0] if mask else None


def _heads_third(value: ir.Value | None) -> ir.Value:
    """Return what the model transposed to `(batch, heads, positions, head_dim)`."""
    transpose = None if value is None else value.producer()
    assert transpose is not None  # the model transposes all three
    assert transpose.op_type == "Transpose"
    assert list(transpose.attributes["perm"].as_ints()) == HEADS_FIRST
    (before,) = transpose.inputs
    assert before is not None
    return before


def operand_grids(rewriter: Rewriter, node: ir.Node) -> dict[str, Grid | None]:
    """Return the grids of the operands q, k, v and a (the probabilities); None for a float one."""
    module, grids = rewriter.module(node), dict[str, Grid | None]()
    for operand in "qkva":
        name = MATMUL[operand]
        quantizer = module._modules.get(name)
        is_on = isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled
        grids[operand] = activation_grid(quantizer, f"{path(node)}.{name}") if is_on else None  # type: ignore[arg-type]
    return grids


def softmax(rewriter: Rewriter, scores: ir.Value, mask: ir.Value | None) -> ir.Value:
    """Return the probabilities of scores."""
    masked = scores if mask is None else rewriter.op("Add", [scores, mask])
    return rewriter.op("Softmax", [masked], {"axis": -1})
