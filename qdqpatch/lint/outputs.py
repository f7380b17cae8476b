"""What becomes of an operation's result: whether it is quantized, and for whom."""

from __future__ import annotations

import onnx_ir as ir

from qdqpatch.lint.walk import QDQ, VIEWS, first_readers, is_constant, readers_of, value_of

SCORES = VIEWS | QDQ | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "QLinearAdd", "QLinearMul"}
"""What may stand between an attention's matmuls and its softmax: scale, mask, and views."""


def is_quantized_alone(value: ir.Value) -> bool:
    """Say whether a product goes to QuantizeLinear only, which runtimes move up to it through views."""
    readers = readers_of(value)
    while len(readers) == 1 and readers[0].op_type in VIEWS:
        readers = readers_of(readers[0].outputs[0])
    return [reader.op_type for reader in readers] == ["QuantizeLinear"]


def is_float_gemm(node: ir.Node, fixed: bool) -> bool:
    """Say whether a Linear is Gemm with a float bias, or MatMul and Add in a file of one shape (`fixed`)."""
    if node.op_type == "Gemm":
        bias = value_of(node, 2)
        return bias is not None and not _is_dequantized(bias)
    readers = readers_of(node.outputs[0])
    if not fixed or node.op_type != "MatMul" or [reader.op_type for reader in readers] != ["Add"]:
        return False
    biases = [value for value in readers[0].inputs if value is not None and is_constant(value)]
    return bool(biases) and not _is_dequantized(biases[0])


def _is_dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def norms_after(value: ir.Value) -> list[ir.Node]:
    """Return the LayerNorms that read a value, by their first node where they are in parts."""
    nodes = first_readers(value, QDQ | {"Identity", "Cast"}, ("LayerNormalization", "ReduceMean"))
    return [
        node
        for node in nodes
        if node.op_type == "LayerNormalization"
        or any(reader.op_type == "Sub" for reader in readers_of(node.outputs[0]))
    ]


def reach_softmax_quantized(node: ir.Node) -> bool:
    """Say whether softmax reads a product through QuantizeLinear and DequantizeLinear."""
    values = _dequantized(node.outputs[0], SCORES - QDQ)
    return any(first_readers(value, SCORES, ("Softmax",)) for value in values)


def with_bias(value: ir.Value) -> ir.Value:
    """Return a product after its bias is added, if one is."""
    readers = readers_of(value)
    if len(readers) == 1 and readers[0].op_type == "Add" and any(map(is_constant, readers[0].inputs)):
        return readers[0].outputs[0]
    return value


def _dequantized(value: ir.Value, through: frozenset[str]) -> list[ir.Value]:
    """Return the values that DequantizeLinear makes of a value, or of it with some operators done."""
    return [
        dequantize.outputs[0]
        for quantize in first_readers(value, through, ("QuantizeLinear",))
        for dequantize in first_readers(quantize.outputs[0], VIEWS, ("DequantizeLinear",))
    ]
