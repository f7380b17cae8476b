"""A quantized Linear as QuantizeLinear, DequantizeLinear, MatMul and Add."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qdqpatch.exporter.graph import Rewriter, path
from qdqpatch.exporter.grids import LARGEST_SCALE, activation_grid, weight_grid
from qdqpatch.exporter.symbolic_operators import DOMAIN, LINEAR
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, OUTPUT, WEIGHT


@dataclass(frozen=True)
class QDQLinear:
    """y = DQ(Q(x)) DQ(W)^T + b.

    Attributes:
        float_weights: Store the weights in fp32 and quantize them in the graph, as engines before int8
            initializers want it; four times the size.
        transposed: Store the weight as `(in_features, out_features)`, so that no Transpose is between
            DequantizeLinear and MatMul.
        constant_weights: Store the weights in fp32, rounded to their levels, without Q and DQ.
    """

    float_weights: bool = False
    transposed: bool = True
    constant_weights: bool = False
    operator: str = LINEAR
    domain: str = DOMAIN

    def rewrite(self, rewriter: Rewriter, node: ir.Node) -> None:
        """Replace the operator."""
        name = path(node)
        linear = rewriter.torch_model.get_submodule(name)
        assert isinstance(linear, QuantLinear)
        inputs = quantized_input(rewriter, node, linear)
        if linear.output_quantizer is None:
            product = rewriter.op("MatMul", [inputs, self._weight(rewriter, linear, name)], name=name)
        else:
            product = self._quantized_product(rewriter, linear, inputs, name)
        rewriter.replace(node, [add_bias(rewriter, product, linear, name)])

    def _quantized_product(
        self, rewriter: Rewriter, linear: QuantLinear, inputs: ir.Value | None, name: str
    ) -> ir.Value:
        """Return the product through Q and DQ.

        TensorRT's kernel writes the integers if the weight has one scale; the ratio of each output's own to
        that may multiply the product.
        """
        quantizer = linear.output_quantizer
        assert quantizer is not None, "the caller has looked"
        ratios: npt.NDArray[np.float32] | None = None
        if linear._weight_quantizer.is_enabled and not self.constant_weights:
            scale = weight_grid(linear._weight_quantizer, linear.weight, f"{name}.{WEIGHT}")[0].scale
            if scale.ndim:
                ratios = np.where(scale < LARGEST_SCALE, scale / _middle(scale), 1).astype(np.float32)
        product = rewriter.op("MatMul", [inputs, self._weight(rewriter, linear, name, ratios)], name=name)
        if ratios is not None:
            product = rewriter.op("Mul", [product, rewriter.constant(ratios, f"{name}.weight_ratio")])
        grid = activation_grid(quantizer, f"{name}.{OUTPUT}")
        return rewriter.dequantize(rewriter.quantize(product, grid), grid)

    def _weight(
        self,
        rewriter: Rewriter,
        linear: QuantLinear,
        name: str,
        ratios: npt.NDArray[np.float32] | None = None,
    ) -> ir.Value:
        """Return the weight's values, `(in_features, out_features)`; over ratios of the outputs, if given."""
        quantizer = linear._weight_quantizer
        if not quantizer.is_enabled or self.constant_weights:
            values = quantizer(linear.weight.detach()).numpy()
            return rewriter.constant(values.T, f"{name}.weight")
        grid, integers = weight_grid(quantizer, linear.weight, f"{name}.{WEIGHT}")
        stored = integers.T if self.transposed else integers
        axis = None if grid.axis is None else int(self.transposed)
        grid = replace(grid, axis=axis)
        if ratios is not None:
            grid = replace(grid, scale=_middle(grid.scale), axis=None)
            axis = None
        if self.float_weights:
            values = linear.weight.detach().numpy()
            if ratios is not None:
                values = values / ratios[:, None]
            weight = rewriter.constant(values.T if self.transposed else values, f"{name}.weight")
            quantized = rewriter.op(
                "QuantizeLinear",
                [
                    weight,
                    rewriter.scale(grid, f"{name}.weight"),
                    rewriter.zero_point(grid, name=f"{name}.weight"),
                ],
                None if axis is None else {"axis": axis},
            )
        else:
            quantized = rewriter.constant(stored, f"{name}.weight_quantized")
        values = rewriter.dequantize(quantized, grid, name=f"{name}.weight")
        return values if self.transposed else rewriter.op("Transpose", [values], {"perm": [1, 0]})


WIDEST = 2.0**10
"""How much smaller than the largest scale that of an output may be, to count in what is in the middle."""


def _middle(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return one scale for a weight: the median of its outputs', as a power of two, exact in every type.

    Outputs of zeros, whose scale means nothing, and of next to nothing do not count: were more than half of
    them like that, in fp16 the ratios of the others would overflow, or all but vanish.
    """
    scales = scales[scales < LARGEST_SCALE]
    scales = scales[scales * WIDEST >= scales.max(initial=0)]
    return np.asarray(np.exp2(np.round(np.log2(np.median(scales)))) if scales.size else 1, np.float32)


def quantized_input(rewriter: Rewriter, node: ir.Node, linear: QuantLinear) -> ir.Value | None:
    """Return what the Linear multiplies: its input, through Q and DQ unless that quantizer is off."""
    inputs, quantizer = scaled_input(rewriter, node, linear), linear._input_quantizer
    if not quantizer.is_enabled or inputs is None:
        return inputs
    grid = activation_grid(quantizer, f"{path(node)}.{INPUT}")
    return rewriter.rounded(inputs, grid)


def scaled_input(rewriter: Rewriter, node: ir.Node, linear: QuantLinear) -> ir.Value | None:
    """Return the Linear's input, times the factors of its channels if it has any."""
    inputs, scale = node.inputs[0], linear.input_scale
    if inputs is None or scale is None:
        return inputs
    return rewriter.scaled(inputs, scale.float().numpy())


def add_bias(rewriter: Rewriter, product: ir.Value, linear: QuantLinear, name: str) -> ir.Value:
    """Return the product plus the Linear's bias."""
    if linear.bias is None:
        return product
    return rewriter.op("Add", [product, rewriter.constant(linear.bias.detach().numpy(), f"{name}.bias")])
