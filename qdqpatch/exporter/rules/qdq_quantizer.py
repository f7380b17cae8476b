"""A quantizer as QuantizeLinear and DequantizeLinear, between two products if its channels have factors."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, path
from qdqpatch.exporter.grids import activation_grid
from qdqpatch.exporter.symbolic_operators import DOMAIN, FAKE_QUANTIZE
from qdqpatch.nn.quantizer import TensorQuantizer


@dataclass(frozen=True)
class QDQActivation:
    """The operands of residual adds, and whatever else a quantizer stands at by itself.

    Attributes:
        offset: Whether to store the integers as uint8, 128 higher.
    """

    offset: bool = False
    operator: str = FAKE_QUANTIZE
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        quantizer, inputs = rewriter.module(node), node.inputs[0]
        assert isinstance(quantizer, TensorQuantizer)
        assert inputs is not None
        grid, scale = activation_grid(quantizer, path(node)), quantizer.input_scale
        if scale is None:
            outputs = rewriter.rounded(inputs, grid, self.offset)
        else:
            scaled = rewriter.scaled(inputs, scale.float().numpy())
            rounded = rewriter.rounded(scaled, grid, self.offset)
            outputs = rewriter.scaled(rounded, scale.float().reciprocal().numpy())
        rewriter.replace(node, [outputs])
