"""Find the operations of an encoder in an ONNX graph, whoever exported it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from qdqpatch.errors import CheckpointError
from qdqpatch.lint.fused import FUSED, fused_sites
from qdqpatch.lint.naming import module_of, owner_of
from qdqpatch.lint.operands import INPUTS, inputs_of, read_bias, read_operands
from qdqpatch.lint.outputs import (
    SCORES,
    is_float_gemm,
    is_quantized_alone,
    norms_after,
    reach_softmax_quantized,
    with_bias,
)
from qdqpatch.lint.sites import Operation, Site
from qdqpatch.lint.walk import QDQ, everything_after, everything_before, first_readers, is_constant

_SUMS = frozenset({"Add", "Sum", "SkipLayerNormalization", "QLinearAdd"})
_NUMBERED: dict[Operation, str] = {
    "linear": "linear",
    "query x key": "attention",
    "probabilities x value": "attention",
    "residual add": "residual",
}
"""What an operation is called, with its number, where nothing in the graph has a name."""


def read_sites(path: Path) -> list[Site]:
    """Return the Linears, attention matmuls and residual adds of a model, in the order they run.

    Linears after the encoder count where they are quantized; so do operators of another domain. Weights are
    not looked at, and may be missing.

    Raises:
        CheckpointError: If the file cannot be read, or there is no encoder in it.
    """
    graph = _load(path)
    nodes = list(graph)
    fixed = all(value.shape is not None and value.shape.is_static() for value in graph.inputs)
    linears = {node: module_of(node, inputs_of(node)[1]) for node in nodes if _is_linear(node)}
    scores, contexts = _find_attention(nodes)
    after = everything_after(linears)
    adds = {node for node in nodes if node in after and _is_residual(node)}
    fused = [node for node in nodes if node.op_type in FUSED]
    if not scores and not adds and not fused:
        raise CheckpointError(f"{path} has no encoder: there is neither attention nor a residual add in it.")
    before = everything_before([*scores, *contexts, *adds, *fused])
    numbers: Counter[tuple[Operation, str]] = Counter()
    sites = []
    for node in nodes:
        operation: Operation
        name: str | None
        if node in linears:
            operation, name = "linear", linears[node]
        elif node in scores:
            operation, name = "query x key", owner_of(node, linears, inputs_of(node))
        elif node in contexts:
            operation, name = "probabilities x value", owner_of(node, linears, inputs_of(node)[1:])
        elif node in adds:
            operation, name = "residual add", owner_of(node, linears, inputs_of(node))
        elif node.op_type in FUSED:
            name = module_of(node) or f"{node.op_type}.{numbers['operator', node.op_type]}"
            numbers["operator", node.op_type] += 1
            sites.extend(fused_sites(node, name))
            continue
        elif node.domain not in ("", "ai.onnx") and node.op_type not in QDQ:
            operation, name = "operator", module_of(node)
        else:
            continue
        kind = _NUMBERED.get(operation, node.op_type)
        name = name or f"{kind}.{numbers[operation, kind]}"
        site = _site(node, operation, name, node in scores and scores[node], fixed)
        if (
            operation == "linear"
            and node not in before
            and not any(operand.dtype for operand in site.operands)
        ):
            continue  # a pooler or a head, which are meant to be float
        numbers[operation, kind] += 1
        sites.append(site)
    return sites


def _load(path: Path) -> ir.Graph:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; name the file in it.")
    try:
        model = ir.load(path)
        if model.functions:
            model = InlinePass()(model).model
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist.") from error
    except Exception as error:  # protobuf, onnx_ir and the system have many types for a file that is no model
        raise CheckpointError(f"{path} cannot be read as an ONNX model.") from error
    return model.graph


def _is_linear(node: ir.Node) -> bool:
    if node.op_type not in INPUTS:
        return False
    first, second = inputs_of(node)
    return is_constant(second) and not is_constant(first)


def _find_attention(nodes: Iterable[ir.Node]) -> tuple[dict[ir.Node, bool], set[ir.Node]]:
    """Return the matmuls before a softmax, each with whether it is scaled after, and those behind one."""
    scores: dict[ir.Node, bool] = {}
    contexts: set[ir.Node] = set()
    for softmax in nodes:
        if softmax.op_type not in ("Softmax", "QLinearSoftmax"):
            continue
        left = [(softmax.inputs[0], False)]
        while left:
            value, scaled = left.pop()
            node = None if value is None else value.producer()
            if node is None:
                continue
            if node.op_type in INPUTS and not any(map(is_constant, inputs_of(node))):
                scores[node] = scaled
            elif node.op_type in SCORES:
                scaled |= node.op_type in ("Mul", "Div", "QLinearMul") and any(
                    map(is_constant, inputs_of(node))
                )
                data = node.inputs[:1] if node.op_type in QDQ else node.inputs
                left.extend((value, scaled) for value in data if not is_constant(value))
        products = first_readers(softmax.outputs[0], SCORES | {"Dropout", "IsNaN"}, INPUTS)
        contexts.update(node for node in products if not _is_linear(node))
    return scores, contexts


def _is_residual(node: ir.Node) -> bool:
    """Say whether a node adds two computed tensors for a LayerNorm."""
    if node.op_type not in _SUMS or len(node.inputs) < 2 or any(map(is_constant, inputs_of(node))):
        return False
    return node.op_type == "SkipLayerNormalization" or bool(norms_after(node.outputs[0]))


def _site(node: ir.Node, operation: Operation, path: str, scaled: bool, fixed: bool) -> Site:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if operation == "operator":
        return Site(path, operation, node.op_type, domain)
    is_linear = operation == "linear"
    float_gemm = is_linear and is_float_gemm(node, fixed)
    result = with_bias(node.outputs[0]) if float_gemm else node.outputs[0]
    return Site(
        path,
        operation,
        node.op_type,
        domain,
        read_operands(node),
        is_quantized_alone(result),
        operation == "query x key" and reach_softmax_quantized(node),
        scaled,
        read_bias(node) if is_linear else None,
        float_gemm,
        _name(node),
        next(map(_name, norms_after(node.outputs[0])), "") if operation == "residual add" else "",
    )


def _name(node: ir.Node) -> str:
    return node.name or f"node_of_{node.outputs[0].name}"
