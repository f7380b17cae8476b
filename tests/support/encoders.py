"""One encoder layer as a small ONNX graph, built the way that different exporters do."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH, HEADS = 8, 2
MICROSOFT = "com.microsoft"
LAYER = "encoder.layer.{}."
DTYPES = {
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
}
"""Types that NumPy has not got."""


@dataclass(frozen=True)
class Style:
    """How a graph is written.

    Attributes:
        dtype: Of the quantized activations.
        second: Of key and value, where it is another.
        zero: Their zero point; None for 0 of signed types and the middle of unsigned ones.
        weight_dtype: Of the quantized weights.
        weight_zero: The zero point of the weights.
        bias: The type of the Linears' biases, which DequantizeLinear stands behind if they are integers.
        half: Whether all that is float is float16.
        fixed: Whether the file takes one shape alone.
        matmul: The operator of attention's matmuls.
        linear: The operator of the Linears.
        weights: How the file holds them.
        axis: Of the weights' scales; at 0 the weights are transposed after.
        by_input: Whether the scales lie along the other axis.
        scale: Where 1/sqrt(d) is: before or after the first matmul, or nowhere.
        split: Whether each operation has a Q/DQ pair of its own.
        differ: Whether those pairs have different scales.
        late_views: Where Reshape and Transpose stand: before Q, between Q and DQ, or after DQ.
        factors: Whether channels of the residual adds' operands are multiplied after DQ.
        add: The operator of the residual adds.
        decomposed: Whether LayerNorm and GELU are in parts.
        floats: The quantizers that are left out.
        extra: Quantizers that are there too.
        names: What tells the modules: the nodes' names, the weights' or nothing.
    """

    dtype: str = "int8"
    second: str | None = None
    zero: int | None = None
    weight_dtype: str = "int8"
    weight_zero: int = 0
    bias: str = "float32"
    half: bool = False
    fixed: bool = False
    matmul: str = "MatMul"
    linear: str = "MatMul"
    weights: str = "int8"
    axis: int = 1
    by_input: bool = False
    scale: str = "before"
    split: bool = False
    differ: bool = False
    late_views: str = "before Q"
    factors: bool = False
    add: str = "Add"
    decomposed: bool = False
    floats: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    names: str = "weights"


FLOAT = Style(
    floats=(
        *("q", "k", "v", "a", "query", "key", "value", "dense"),
        *(f"{name}.weight" for name in ("query", "key", "value", "dense")),
        *(
            f"encoder.layer.0.{part}output.{side}"
            for part in ("attention.", "")
            for side in ("local", "residual")
        ),
    ),
)
"""One layer without any quantizer, for tools that put their own in."""

QDQBERT = Style(weights="float", axis=0, scale="after", decomposed=True, names="nodes")
"""What torch.onnx.export makes of the original QDQBERT: one signed Q/DQ pair for all that reads a tensor."""


class Builder:
    """Collects the nodes and initializers of a graph."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.module = ""
        self.quantized: dict[tuple[str, str], tuple[str, str]] = {}
        self.random = np.random.default_rng(0)

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        number = len(self.nodes)
        name = f"/{self.module.replace('.', '/')}/{op_type}_{number}" if self.style.names == "nodes" else ""
        output = f"value_{number}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, domain=domain, **attributes))
        return output

    def const(self, name: str, array: Any) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def scale(self, name: str = "scale", value: float = 0.05) -> str:
        return self.const(name, np.float32(value))

    def zero_point(self, dtype: str) -> str:
        if self.style.names == "nodes":  # as torch.onnx.export does: a constant of int64, then Cast
            zero = self.op("Constant", value=numpy_helper.from_array(np.array(0, np.int64)))
            return self.op("Cast", zero, to={"int8": 3, "uint8": 2}[dtype])
        middle = {"uint8": 128, "uint16": 2**15}.get(dtype, 0)
        number = middle if self.style.zero is None else self.style.zero
        return self.const(f"zero_{dtype}", np.array(number).astype(DTYPES.get(dtype, dtype)))

    def qdq(
        self, value: str, quantizer: str, dtype: str | None = None, views: bool = False, turned: bool = False
    ) -> str:
        """Quantize and dequantize; the same tensor by one QuantizeLinear, where the style does not split."""
        if quantizer in self.style.floats:
            return self.heads(value, turned) if views else value
        late = self.style.late_views if views else ""
        if late == "before Q":
            value = self.heads(value, turned)
        dtype = dtype or self.style.dtype
        key = (value, quantizer if self.style.split else dtype)
        if key not in self.quantized:
            value_of_scale = 0.05 + 1e-4 * len(self.quantized) * self.style.differ
            scale = self.scale(f"scale_{quantizer}", value_of_scale) if self.style.split else self.scale()
            point = self.zero_point(dtype)
            integers = self.op("QuantizeLinear", value, scale, point)
            if late == "between":
                integers = self.heads(integers, turned)
            dequantized = self.op("DequantizeLinear", integers, scale, point)
            self.quantized[key] = (dequantized, integers)
        dequantized, _ = self.quantized[key]
        return self.heads(dequantized, turned) if late == "after DQ" else dequantized

    def extra(self, value: str, quantizer: str) -> str:
        return self.qdq(value, quantizer) if quantizer in self.style.extra else value

    def integers(self, value: str, dtype: str, views: bool, turned: bool) -> tuple[str, str]:
        value = self.heads(value, turned) if views else value
        point = self.zero_point(dtype)
        return self.op("QuantizeLinear", value, self.scale(), point), point

    def heads(self, value: str, turned: bool = False) -> str:
        shape = self.const("shape_heads", np.array([0, 0, HEADS, WIDTH // HEADS]))
        perm = [0, 2, 3, 1] if turned else [0, 2, 1, 3]
        return self.op("Transpose", self.op("Reshape", value, shape), perm=perm)

    def weight(self, name: str, style: Style) -> tuple[str, str, str]:
        """Store a quantized weight with its scales; return both and the zero points."""
        dtype = DTYPES.get(style.weight_dtype, style.weight_dtype)
        largest = 7 if style.weight_dtype == "int4" else 127
        values = self.random.integers(-largest, largest + 1, (WIDTH, WIDTH)).astype(dtype)
        scales = self.const(f"{name}.scale", np.full(WIDTH, 0.01, np.float32))
        zeros = self.const(f"{name}.zero", np.full(WIDTH, style.weight_zero).astype(dtype))
        label = f"{name}.weight" if style.names != "none" else f"tensor_{len(self.initializers)}"
        return self.const(label, values), scales, zeros

    def linear(self, value: str, name: str) -> str:
        outer, self.module = self.module, name
        style = self.style
        axis = 1 - style.axis if style.by_input else style.axis
        weight, scales, zeros = self.weight(name, style)
        short = name.rpartition(".")[2]
        if style.linear == "MatMulInteger":
            dynamic = self.nodes_of("DynamicQuantizeLinear", value, outputs=3)
            integers = self.op("MatMulInteger", dynamic[0], weight, dynamic[2])
            product = self.op("Mul", self.op("Cast", integers, to=1), self.op("Mul", dynamic[1], scales))
        elif style.linear == "FusedMatMul":
            dequantized = self.op("DequantizeLinear", weight, scales, zeros, axis=axis)
            product = self.op("FusedMatMul", self.qdq(value, short), dequantized, domain=MICROSOFT)
        else:
            if f"{short}.weight" in style.floats:
                values = self.random.standard_normal((WIDTH, WIDTH)).astype(np.float32)
                dequantized = self.const(weight, values)
            elif style.weights == "float":
                self.const(weight, np.ones((WIDTH, WIDTH), np.float32))
                integers = self.op("QuantizeLinear", weight, scales, zeros, axis=axis)
                dequantized = self.op("DequantizeLinear", integers, scales, zeros, axis=axis)
            else:
                dequantized = self.op("DequantizeLinear", weight, scales, zeros, axis=axis)
            if style.axis == 0:
                dequantized = self.op("Transpose", dequantized, perm=[1, 0])
            product = self.op(style.linear, self.qdq(value, short), dequantized)
        bias = self.const(f"{name}.bias", np.ones(WIDTH, style.bias))
        if style.bias != "float32":
            bias = self.op("DequantizeLinear", bias, scales, axis=0)
        biased = self.op("Add", product, bias)
        self.module = outer
        return biased

    def nodes_of(self, op_type: str, value: str, outputs: int) -> list[str]:
        names = [f"value_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op_type, [value], names))
        return names

    def product(self, first: str, second: str, names: str, views: tuple[bool, bool]) -> str:
        """Multiply two computed tensors."""
        style = self.style
        other = style.second or style.dtype
        if style.matmul == "MatMulIntegerToFloat":
            a, a_zero = self.integers(first, style.dtype, views[0], False)
            b, b_zero = self.integers(second, other, views[1], names == "qk")
            scale = self.scale()
            return self.op(style.matmul, a, b, scale, scale, a_zero, b_zero, domain=MICROSOFT)
        a = self.qdq(first, names[0], views=views[0])
        return self.op("MatMul", a, self.qdq(second, names[1], other, views[1], turned=names == "qk"))

    def norm(self, value: str, name: str) -> str:
        ones = self.const(f"{name}.gamma", np.ones(WIDTH, np.float32))
        if not self.style.decomposed:
            return self.op("LayerNormalization", value, ones, axis=-1)
        centred = self.op("Sub", value, self.op("ReduceMean", value, axes=[-1]))
        squares = self.op("Pow", centred, self.const("two", np.float32(2)))
        variance = self.op(
            "Add", self.op("ReduceMean", squares, axes=[-1]), self.const("eps", np.float32(1e-12))
        )
        return self.op("Mul", self.op("Div", centred, self.op("Sqrt", variance)), ones)

    def add_norm(self, value: str, residual: str, name: str) -> str:
        self.module = name
        operands = self.qdq(value, f"{name}.local"), self.qdq(residual, f"{name}.residual")
        if self.style.factors:
            factors = self.const(f"{name}.factors", np.linspace(0.5, 2, WIDTH, dtype=np.float32))
            operands = self.op("Mul", operands[0], factors), self.op("Mul", operands[1], factors)
        if self.style.add == "SkipLayerNormalization":
            ones = self.const(f"{name}.gamma", np.ones(WIDTH, np.float32))
            return self.op(self.style.add, *operands, ones, domain=MICROSOFT)
        return self.norm(self.extra(self.op(self.style.add, *operands), "norm"), name)

    def gelu(self, value: str) -> str:
        if not self.style.decomposed:
            return self.op("Gelu", value)
        root, one, half = (self.const(f"gelu_{value}", np.float32(value)) for value in (1.4142, 1.0, 0.5))
        erf = self.op("Erf", self.op("Div", value, root))
        return self.op("Mul", self.op("Mul", value, self.op("Add", erf, one)), half)

    def layer(self, value: str, number: int) -> str:
        prefix = LAYER.format(number)
        inside = f"{prefix}attention.self"
        self.module = inside
        query, key, context = (self.linear(value, f"{inside}.{name}") for name in ("query", "key", "value"))
        root = self.const("root", np.float32(0.5))
        if self.style.scale == "before":
            query = self.op("Mul", query, root)
        scores = self.extra(self.product(query, key, "qk", (True, True)), "scores")
        if self.style.scale == "after":
            scores = self.op("Div", scores, root)
        scores = self.op("Softmax", self.op("Add", scores, "mask"), axis=-1)
        context = self.product(scores, context, "av", (False, True))
        shape = self.const("shape_merged", np.array([0, 0, WIDTH]))
        merged = self.op("Reshape", self.op("Transpose", context, perm=[0, 2, 1, 3]), shape)
        attended = self.linear(merged, f"{prefix}attention.output.dense")
        middle = self.add_norm(attended, value, f"{prefix}attention.output")
        self.module = f"{prefix}intermediate"
        wide = self.extra(self.linear(middle, f"{prefix}intermediate.dense"), "gelu")
        output = self.linear(self.gelu(wide), f"{prefix}output.dense")
        return self.add_norm(output, middle, f"{prefix}output")


def write_encoder(path: Path, style: Style, layers: int = 1, head: str | None = None) -> Path:
    """Write an encoder after an embedding; behind it the Linear `head`, float or quantized, or none."""
    builder = Builder(style)
    builder.module = "embeddings"
    table = builder.const("table", np.ones((16, WIDTH), np.float32))
    words = builder.op("Gather", table, "input_ids")
    value = builder.norm(builder.op("Add", words, words), "embeddings")
    for number in range(layers):
        value = builder.layer(value, number)
    if head == "float":
        value = builder.op("MatMul", value, builder.const("head.weight", np.ones((WIDTH, 2), np.float32)))
    elif head == "quantized":
        value = builder.linear(value, "head")
    batch, length = (2, 16) if style.fixed else ("batch", "length")
    initializers = list(builder.initializers.values())
    dtype = onnx.TensorProto.FLOAT16 if style.half else onnx.TensorProto.FLOAT
    if style.half:
        floats = [tensor for tensor in initializers if tensor.data_type == onnx.TensorProto.FLOAT]
        for tensor in floats:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    graph = helper.make_graph(
        builder.nodes,
        "encoder",
        [
            helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [batch, length]),
            helper.make_tensor_value_info("mask", dtype, [batch, 1, 1, length]),
        ],
        [helper.make_tensor_value_info(value, dtype, None)],
        initializers,
    )
    types = {style.dtype, style.second, style.weight_dtype}
    opset = 13 if style.decomposed else 21 if types & {"int16", "uint16", "int4", "uint4"} else 20
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def write_fused_encoder(path: Path, quantized: bool) -> Path:
    """Write a layer of the operators that ONNX Runtime's optimizer for transformers makes, of them one.

    Args:
        path: The file.
        quantized: Whether to write QAttention and MatMulInteger, as quantize_dynamic does, for Attention
            and MatMul.
    """
    builder = Builder(Style(linear="MatMulInteger" if quantized else "MatMul", floats=FLOAT.floats))
    table = builder.const("table", np.ones((16, WIDTH), np.float32))
    value = builder.op("Gather", table, "input_ids")
    name = LAYER.format(0) + "attention"
    bias = builder.const("qkv.bias", np.ones(3 * WIDTH, np.float32))
    if quantized:
        weight = builder.const("qkv.weight", np.ones((WIDTH, 3 * WIDTH), np.int8))
        integers, scale, zero = builder.nodes_of("DynamicQuantizeLinear", value, outputs=3)
        scales = builder.const("qkv.scale", np.float32(0.01))
        zeros = builder.const("qkv.zero", np.int8(0))
        inputs = [integers, weight, bias, scale, scales, "", zero, zeros]
        context = builder.op("QAttention", *inputs, domain=MICROSOFT, num_heads=HEADS)
    else:
        weight = builder.const("qkv.weight", np.ones((WIDTH, 3 * WIDTH), np.float32))
        context = builder.op("Attention", value, weight, bias, domain=MICROSOFT, num_heads=HEADS)
    builder.style = replace(builder.style, add="SkipLayerNormalization")
    attended = builder.add_norm(builder.linear(context, f"{name}.output.dense"), value, f"{name}.output")
    graph = helper.make_graph(
        builder.nodes,
        "encoder",
        [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info(attended, onnx.TensorProto.FLOAT, None)],
        list(builder.initializers.values()),
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path
