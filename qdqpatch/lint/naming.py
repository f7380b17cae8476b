"""What an operation is called: its module, from whichever names the exporter left in the graph."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import onnx_ir as ir

from qdqpatch.lint.walk import VIEWS, is_constant

_SCOPES = "pkg.torch.onnx.name_scopes"
_BEHIND = VIEWS | {"QuantizeLinear", "DequantizeLinear", "Add", "Mul", "Div"}
"""What may stand between a Linear and the operation that is named after it."""

_PATH = re.compile(r"([A-Za-z_]\w*(?:\.\w+)+)(?:#\d+)?")
"""A module's path, and which of its runs it is: what `qdqpatch export` calls a Linear's node."""


def module_of(node: ir.Node, weight: ir.Value | None = None) -> str | None:
    """Return the module that a node belongs to.

    `/encoder/layer.0/output/dense/MatMul` is how torch.onnx.export names nodes; where they have only
    numbers, weights may have kept their names, or the newer exporter's metadata the modules. A Linear's node
    may be called after the module itself.
    """
    if node.name and "/" in node.name:
        return ".".join(node.name.strip("/").split("/")[:-1]) or None
    path = None if weight is None else _PATH.fullmatch(node.name or "")
    while weight is not None:
        if ".weight" in (weight.name or ""):
            return (weight.name or "").rpartition(".weight")[0]
        producer = weight.producer()
        weight = producer.inputs[0] if producer is not None and producer.inputs else None
    if path is not None:
        return path[1]
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "()"))
        return str(scopes[-2]) or None
    except (ValueError, SyntaxError, IndexError, TypeError):
        return None


def owner_of(
    node: ir.Node, linears: dict[ir.Node, str | None], operands: Iterable[ir.Value | None]
) -> str | None:
    """Return the module of an operation without a weight: its own, or that around the Linear before it."""
    own = module_of(node)
    if own is not None:
        return own
    for value in operands:
        while value is not None:
            producer = value.producer()
            if producer in linears:
                return (linears[producer] or "").rpartition(".")[0] or None
            if producer is None or producer.op_type not in _BEHIND:
                break
            value = next((before for before in producer.inputs if not is_constant(before)), None)
    return None
