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
LAST_TWO_SWAPPED = [0, 1, 3, 2]


@dataclass(frozen=True)
class QDQAttention:
    """softmax(DQ(Q(q)) DQ(Q(k))^T + mask), quantized once more, times DQ(Q(v))."""

    operator: str = ATTENTION
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        name = path(node)
        query, key, value, mask = operands(node)
        scaling = node.attributes["scaling"].as_float()
        scaled = rewriter.op(
            "Mul",
            [query.turned(rewriter), rewriter.constant(np.array(scaling, np.float32), f"scaling_{scaling}")],
        )
        grids = operand_grids(rewriter, node)
        left = _pair(rewriter, scaled, grids["q"] and grids["q"].times(scaling))
        right = _pair(rewriter, key.turned(rewriter, keys_last=True), grids["k"])
        scores = rewriter.op("MatMul", [left, right], name=f"{name}.query_x_key")
        probabilities = softmax(rewriter, scores, mask)
        left = _pair(rewriter, probabilities, grids["a"])
        right = _pair(rewriter, value.turned(rewriter), grids["v"])
        context = rewriter.op("MatMul", [left, right], name=f"{name}.probabilities_x_value")
        rewriter.replace(node, [rewriter.op("Transpose", [context], {"perm": HEADS_FIRST}), probabilities])


def _pair(rewriter: Rewriter, value: ir.Value, grid: Grid | None) -> ir.Value:
    return value if grid is None else rewriter.rounded(value, grid)


@dataclass(frozen=True)
class Heads:
    """A query, key or value of attention.

    Attributes:
        value: Shape `(batch, heads, positions, head_dim)`, or what the model made that of by a Transpose,
            `(batch, positions, heads, head_dim)`.
        heads_third: Whether it is the latter. With rotary positions, which come after it, it is not.
    """

    value: ir.Value
    heads_third: bool

    def turned(self, rewriter: Rewriter, value: ir.Value | None = None, keys_last: bool = False) -> ir.Value:
        """Return it, or its integers, as a matmul reads it.

        Args:
            rewriter: Of the graph.
            value: What to take in place of `self.value`, with the same dimensions.
            keys_last: Whether to return `(batch, heads, head_dim, positions)`.
        """
        value = self.value if value is None else value
        if not self.heads_third and not keys_last:
            return value
        perm = (KEYS_LAST if keys_last else HEADS_FIRST) if self.heads_third else LAST_TWO_SWAPPED
        return rewriter.op("Transpose", [value], {"perm": perm})


def operands(node: ir.Node) -> tuple[Heads, Heads, Heads, ir.Value | None]:
    """Return query, key and value, and what is added to the scores."""
    query, key, value, *mask = node.inputs
    return _heads(query), _heads(key), _heads(value), mask[0] if mask else None


def _heads(value: ir.Value | None) -> Heads:
    assert value is not None  # all three are there
    transpose = value.producer()
    if transpose is None or transpose.op_type != "Transpose":
        return Heads(value, heads_third=False)
    (before,) = transpose.inputs
    if before is None or list(transpose.attributes["perm"].as_ints()) != HEADS_FIRST:
        return Heads(value, heads_third=False)
    return Heads(before, heads_third=True)


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
