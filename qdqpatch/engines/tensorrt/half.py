"""A graph with all that is float in 16 bits, and one without quantizers: what int8 is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qdqpatch.nn.names import FACTORS

Floats = npt.NDArray[Any]


def cast_floats(model: ir.Model, dtype: ir.DataType) -> None:
    """Change every fp32 constant, cast, input and output of a graph to another float type, in place.

    Numbers beyond the type's range become its largest ones (a mask of -3.4e38 is -65504 in fp16), and
    scales that it would round to 0 its smallest.

    Args:
        model: A graph; its weights may lie in a file beside.
        dtype: `FLOAT16` or `BFLOAT16`.
    """
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(rounded(tensor.numpy(), dtype), name=value.name)
            value.type = ir.TensorType(dtype)
    for node in model.graph:
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
                tensor = ir.tensor(rounded(attribute.as_tensor().numpy(), dtype))
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", dtype)
        for value in node.outputs:
            _retype(value, dtype)
    for value in (*model.graph.inputs, *model.graph.outputs):
        _retype(value, dtype)


def rounded(array: Floats, dtype: ir.DataType) -> Floats:
    """Return an array in another type: no number overflows, and no positive one vanishes."""
    to = dtype.numpy()
    info = ir_finfo(dtype)
    clipped = np.clip(np.asarray(array, np.float32), -info[1], info[1])
    clipped = np.where((clipped > 0) & (clipped < info[0]), np.float32(info[0]), clipped)
    return clipped.astype(to)


def ir_finfo(dtype: ir.DataType) -> tuple[float, float]:
    """Return the smallest positive number of a type, and its largest."""
    return (2.0**-24, 65504.0) if dtype == ir.DataType.FLOAT16 else (2.0**-126, 3.3895314e38)


def remove_quantizers(model: ir.Model) -> None:
    """Take every QuantizeLinear and DequantizeLinear out of a graph, in place; weights become float.

    So are the products with factors of channels, which a float model has none of. The graph is for the
    compiler then and computes something else: the weights of smoothed Linears were divided by the factors.
    """
    for node in list(model.graph):
        if node.op_type == "Mul" and (factors := node.inputs[1]) is not None:
            if (factors.name or "").startswith(FACTORS) and node.inputs[0] is not None:
                ir.convenience.replace_all_uses_with(
                    node.outputs[0], node.inputs[0], replace_graph_outputs=True
                )
            continue
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "DequantizeLinear":
            stored = ir.convenience.get_const_tensor(source)
            if stored is not None and stored.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                source = _dequantized(model.graph, node, stored)
        ir.convenience.replace_all_uses_with(node.outputs[0], source, replace_graph_outputs=True)
    RemoveUnusedNodesPass()(model)


def _dequantized(graph: ir.Graph, node: ir.Node, stored: ir.TensorProtocol) -> ir.Value:
    scales = ir.convenience.get_const_tensor(node.inputs[1])  # type: ignore[arg-type]
    assert scales is not None
    values, scale = stored.numpy().astype(np.float32), scales.numpy().astype(np.float32)
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    if block:
        scale = np.repeat(scale, block, axis)[tuple(slice(size) for size in values.shape)]
    elif scale.ndim == 1 and scale.size > 1:
        scale = scale.reshape([-1 if at == axis % values.ndim else 1 for at in range(values.ndim)])
    name = f"{node.outputs[0].name}_float"
    tensor = ir.tensor((values * scale).astype(scales.numpy().dtype), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _retype(value: ir.Value, dtype: ir.DataType) -> None:
    if value.dtype == ir.DataType.FLOAT:
        value.type = ir.TensorType(dtype)
