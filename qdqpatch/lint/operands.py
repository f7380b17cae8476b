"""How an operand is quantized: back from an operation to QuantizeLinear or to the stored weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from qdqpatch.lint.sites import Operand
from qdqpatch.lint.walk import VIEWS, behind_views, is_constant, readers_of, value_of
from qdqpatch.nn.pairs import pairs_fit

INPUTS: dict[str, tuple[tuple[int, int | None], tuple[int, int | None]]] = {
    "MatMul": ((0, None), (1, None)),
    "Gemm": ((0, None), (1, None)),
    "FusedMatMul": ((0, None), (1, None)),
    "MatMulInteger": ((0, 2), (1, 3)),
    "MatMulIntegerToFloat": ((0, 4), (1, 5)),
    "DynamicQuantizeMatMul": ((0, None), (1, 3)),
    "QLinearMatMul": ((0, 2), (3, 5)),
    "QGemm": ((0, 2), (3, 5)),
}
"""The operators that multiply matrices: for each operand its input, and that of its zero point."""

_OPERANDS = {**INPUTS, "QLinearAdd": ((0, 2), (3, 5))}
_PLAIN: tuple[tuple[int, int | None], tuple[int, int | None]] = ((0, None), (1, None))


def inputs_of(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Return the two operands of an operation."""
    (first, _), (second, _) = _OPERANDS.get(node.op_type, _PLAIN)
    return value_of(node, first), value_of(node, second)


def read_operands(node: ir.Node) -> tuple[Operand, ...]:
    """Return the two operands of an operation as rules see them."""
    indices = _OPERANDS.get(node.op_type, _PLAIN)
    return tuple(
        _read(node, value, point) for value, (_, point) in zip(inputs_of(node), indices, strict=True)
    )


def _read(node: ir.Node, value: ir.Value | None, zero_point: int | None) -> Operand:
    if value is None:
        return Operand()
    constant = is_constant(value)
    if zero_point is not None:
        return integer_operand(value, value_of(node, zero_point), constant)
    if node.op_type == "DynamicQuantizeMatMul":
        return Operand("uint8", zero_point=None)
    value, between = behind_views(value)
    if node.op_type == "Add":
        value = _behind_factors(value)
    dequantize = value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0] is None:
        return Operand(constant=constant)
    integers, moved = behind_views(dequantize.inputs[0])
    read = integer_operand(integers, value_of(dequantize, 2), constant)
    quantize = integers.producer()
    return Operand(
        read.dtype,
        constant,
        read.zero_point,
        read.readers,
        between,
        moved,
        "float" if constant and quantize is not None and quantize.op_type == "QuantizeLinear" else "integer",
        constant and _scales_follow_inputs(node, dequantize, between),
        _type_of(value_of(dequantize, 1)) in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    )


def _behind_factors(value: ir.Value) -> ir.Value:
    """Return what factors of channels multiply; the kernel of an add and its LayerNorm does that too."""
    product = value.producer()
    if product is None or product.op_type != "Mul":
        return value
    tensors = [tensor for tensor in product.inputs if tensor is not None and not is_constant(tensor)]
    return tensors[0] if len(tensors) == 1 else value


def read_bias(node: ir.Node) -> str | None:
    """Return the integer type that the bias of a Linear is stored in; None for a float one or none."""
    if node.op_type == "Gemm":
        biases = [value_of(node, 2)]
    else:
        adds = [reader for reader in readers_of(node.outputs[0]) if reader.op_type == "Add"]
        biases = [value for add in adds for value in add.inputs if is_constant(value)]
    for bias in biases:
        dequantize = None if bias is None else bias.producer()
        if dequantize is not None and dequantize.op_type == "DequantizeLinear":
            dtype = _type_of(dequantize.inputs[0])
            return None if dtype is None else dtype.name.lower()
    return None


def _type_of(value: ir.Value | None) -> ir.DataType | None:
    tensor = None if value is None else _tensor(value)
    if tensor is not None:
        return tensor.dtype
    return None if value is None else value.dtype


def integer_operand(integers: ir.Value, zero_point: ir.Value | None, constant: bool) -> Operand:
    """Read an operand that comes as integers."""
    integers, _ = behind_views(integers)
    dtype, number = _zero_point(zero_point)
    if zero_point is None:
        stored = _tensor(integers)
        quantize = integers.producer()
        if stored is not None:
            dtype = stored.dtype
        elif quantize is not None and quantize.op_type == "QuantizeLinear":
            given = quantize.attributes.get_int("output_dtype", 0)
            dtype = ir.DataType(given) if given else _zero_point(value_of(quantize, 2))[0]
    operand = Operand(dtype.name.lower(), constant, number, _count_readers(integers))
    return replace(operand, fits_pairs=constant and dtype == ir.DataType.INT8 and _fits_pairs(integers))


def _fits_pairs(weight: ir.Value) -> bool:
    """Say whether the pairs of a weight's levels fit, shape `(..., in_features, out_features)`."""
    tensor = _tensor(weight)
    try:
        return tensor is not None and len(tensor.shape) > 1 and pairs_fit(tensor.numpy().swapaxes(-1, -2))
    except (OSError, ValueError):  # it is in a file of its own, which is not there
        return False


def _zero_point(value: ir.Value | None) -> tuple[ir.DataType, int | None]:
    """Return a zero point's integer type and number; of several that which is furthest from 0."""
    if value is None:
        return ir.DataType.UINT8, 0
    node = value.producer()
    if node is not None and node.op_type in VIEWS:
        dtype, number = _zero_point(node.inputs[0])
        return (ir.DataType(node.attributes["to"].as_int()) if node.op_type == "Cast" else dtype), number
    tensor = _tensor(value)
    if tensor is None:
        return value.dtype or ir.DataType.UINT8, None
    try:
        return tensor.dtype, int(max(tensor.numpy().flatten().tolist(), key=abs))
    except (OSError, ValueError):  # it is in a file of its own, which is not there
        return tensor.dtype, None


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(value)


def _count_readers(integers: ir.Value) -> int:
    """Count the operations that read quantized values, as integers or each through DequantizeLinear.

    Equal QuantizeLinear nodes count as one, for runtimes merge them.
    """
    left = [integers]
    quantize = integers.producer()
    if quantize is not None and quantize.inputs and quantize.inputs[0] is not None:
        left = [
            reader.outputs[0]
            for reader in readers_of(quantize.inputs[0])
            if reader.op_type == quantize.op_type
            and list(map(_key, reader.inputs[1:])) == list(map(_key, quantize.inputs[1:]))
        ]
    found: set[ir.Node] = set()
    while left:
        for node in readers_of(left.pop()):
            if node.op_type in VIEWS or node.op_type == "DequantizeLinear":
                left.append(node.outputs[0])
            else:
                found.add(node)
    return len(found)


def _key(value: ir.Value | None) -> object:
    """Return what two constants have in common if they are equal."""
    tensor = None if value is None else _tensor(behind_views(value)[0])
    try:
        return value if tensor is None else (tensor.dtype, tensor.tobytes())
    except (OSError, ValueError):  # it is in a file of its own, which is not there
        return value


def _scales_follow_inputs(node: ir.Node, dequantize: ir.Node, between: Sequence[str]) -> bool:
    """Say whether the scales of a weight lie along the axis that the product sums over."""
    scale = value_of(dequantize, 1)
    tensor = None if scale is None else _tensor(scale)
    shape = tensor.shape if tensor is not None else None if scale is None else scale.shape
    if shape is None or len(shape) != 1 or shape[0] == 1:
        return False
    turns = between.count("Transpose")
    if node.op_type in ("Gemm", "FusedMatMul"):
        turns += node.attributes.get_int("transB", 0)
    return (dequantize.attributes.get_int("axis", 1) + turns) % 2 == 0
