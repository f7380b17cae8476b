"""A quantized embedding as a lookup in a table of int8, a quarter of the size."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, path
from qdqpatch.exporter.grids import Grid, weight_grid
from qdqpatch.exporter.symbolic_operators import DOMAIN, EMBEDDING
from qdqpatch.nn.linear import QuantEmbedding
from qdqpatch.nn.names import WEIGHT


@dataclass(frozen=True)
class LookUpIntegers:
    """Rows are looked up as integers, and only they become fp32: the table never does."""

    operator: str = EMBEDDING
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        embedding, name = rewriter.module(node), path(node)
        assert isinstance(embedding, QuantEmbedding)
        grid, integers = weight_grid(embedding._weight_quantizer, embedding.weight, f"{name}.{WEIGHT}")
        table = rewriter.constant(integers, f"{name}.weight_quantized")
        rows = rewriter.op("Gather", [table, node.inputs[0]], {"axis": 0}, name=name)
        if grid.axis is None:
            rewriter.replace(node, [rewriter.dequantize(rows, grid)])
            return
        # DequantizeLinear has a scale for each index of one axis, not for each row that was looked up.
        scales = rewriter.constant(Grid(grid.scale[:, None]).scale, f"{name}.weight_scale")
        scale = rewriter.op("Gather", [scales, node.inputs[0]], {"axis": 0})
        values = rewriter.op("Cast", [rows], {"to": ir.DataType.FLOAT})
        rewriter.replace(node, [rewriter.op("Mul", [values, scale])])
