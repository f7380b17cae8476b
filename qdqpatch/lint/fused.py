"""Operators that hold several operations of an encoder, and how each of those is computed."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from qdqpatch.lint.operands import integer_operand
from qdqpatch.lint.sites import Operand, Operation, Site
from qdqpatch.lint.walk import value_of

Operands = tuple[Operand, Operand]
_FLOAT: Operands = (Operand(), Operand())
_FLOAT_LINEAR: Operands = (Operand(), Operand(constant=True))


def _integer_projection(node: ir.Node) -> Operands:
    """Read QAttention: query, key and value are one Linear of integers; attention's matmuls are float."""
    inputs, weight = value_of(node, 0), value_of(node, 1)
    if inputs is None or weight is None:
        return _FLOAT_LINEAR
    return (
        integer_operand(inputs, value_of(node, 6), False),
        integer_operand(weight, value_of(node, 7), True),
    )


def _few_bits(node: ir.Node) -> Operands:
    """Read MatMulNBits: a float input times a weight of as many bits as it says."""
    return Operand(), Operand(f"uint{node.attributes.get_int('bits', 4)}", constant=True)


_ATTENTION: dict[Operation, Callable[[ir.Node], Operands]] = {
    "query x key": lambda _: _FLOAT,
    "probabilities x value": lambda _: _FLOAT,
}

FUSED: dict[str, dict[Operation, Callable[[ir.Node], Operands]]] = {
    "Attention": {"linear": lambda _: _FLOAT_LINEAR, **_ATTENTION},
    "QAttention": {"linear": _integer_projection, **_ATTENTION},
    "PackedAttention": {"linear": lambda _: _FLOAT_LINEAR, **_ATTENTION},
    "MultiHeadAttention": _ATTENTION,
    "PackedMultiHeadAttention": _ATTENTION,
    "GroupQueryAttention": _ATTENTION,
    "MatMulNBits": {"linear": _few_bits},
}
"""The operations in an operator, and what reads the two operands of each.

From the documentation of the operators of com.microsoft in ONNX Runtime (`docs/ContribOperators.md`).
"""

_OWN_PROJECTION = ("Attention", "PackedAttention")


def fused_sites(node: ir.Node, path: str) -> list[Site]:
    """Return the operations that an operator holds."""
    operations = dict(FUSED[node.op_type])
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not domain and node.op_type in _OWN_PROJECTION:  # that of ONNX begins with query, key and value
        del operations["linear"]
    return [Site(path, operation, node.op_type, domain, read(node)) for operation, read in operations.items()]
