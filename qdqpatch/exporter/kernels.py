"""Which matmuls of a model the engine computes with integer kernels, and why the others stay float."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, MATMUL, WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer

MATMULS = ("MatMul", "Gemm", "MatMulIntegerToFloat")
ATTENTION = {".query_x_key": "qk", ".probabilities_x_value": "av"}
"""How attention's matmuls are called after their module, and the operands of each."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of an engine's optimized graph.

    Attributes:
        names: Of the nodes that it came from.
        kind: What the engine calls it.
        integer: Whether it multiplies integers.
    """

    names: frozenset[str]
    kind: str
    integer: bool


@dataclass(frozen=True)
class Operation:
    """A matrix multiplication of the model.

    Attributes:
        name: The path of its module, with `.query_x_key` or `.probabilities_x_value` for attention's.
        integer: Whether an integer kernel computes it.
        reason: Why not; empty if one does.
    """

    name: str
    integer: bool
    reason: str = ""


def name_after_modules(graph: ir.Graph) -> None:
    """Call the matmuls that the exporter named after their module, and drop what else it noted.

    Its notes hold the paths of source files on the machine that exported.
    """
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        if node.op_type in MATMULS and len(scopes) > 2:
            node.name = scopes[-2].removeprefix("model.")
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs):
        value.metadata_props.clear()
    for value in list(graph.initializers.values()):
        value.metadata_props.clear()
        assert value.name is not None
        value.name = value.name.removeprefix("model.")


def matmuls(graph: ir.Graph) -> dict[str, set[str]]:
    """Return the names of a graph's matmuls, each with all that an engine may call it by."""
    found: dict[str, set[str]] = {}
    for node in graph:
        if node.op_type in MATMULS and node.name:
            last = node
            readers = [use.node for use in node.outputs[0].uses()]
            if len(readers) == 1 and readers[0].op_type == "Add":
                last = readers[0]
            found[node.name] = {name for name in (node.name, last.outputs[0].name) if name}
    return found


def match(model: nn.Module, names: dict[str, set[str]], kernels: Iterable[Kernel]) -> list[Operation]:
    """Say of each matmul whether an engine's kernels compute it with integers.

    Args:
        model: The quantized model.
        names: What `matmuls` returned.
        kernels: The engine's.
    """
    by_name = {name: kernel for kernel in kernels for name in kernel.names}
    operations = []
    for name, aliases in names.items():
        kernel = next((by_name[alias] for alias in sorted(aliases) if alias in by_name), None)
        # What the model leaves float is float, even inside a kernel that multiplies integers elsewhere.
        reason = _float_in(model, name)
        if not reason and (kernel is None or not kernel.integer):
            reason = f"the engine took {kernel.kind if kernel else 'another kernel'}"
        operations.append(Operation(name, not reason, reason))
    return operations


def _float_in(model: nn.Module, name: str) -> str:
    """Return why a matmul is float in the model already; empty if it is not."""
    suffix = next((suffix_ for suffix_ in ATTENTION if name.endswith(suffix_)), None)
    try:
        module = model.get_submodule(name.removesuffix(suffix or ""))
    except AttributeError:  # torch.onnx loses the names of float Linears where it converts to an old opset
        return "not quantized"
    if suffix is not None:
        quantizers = [MATMUL[operand] for operand in ATTENTION[suffix]]
    elif isinstance(module, QuantLinear):
        quantizers = [INPUT, WEIGHT]
    else:
        return "not quantized: its part of the model is off in the QDQConfig"
    children = {quantizer: module._modules.get(quantizer) for quantizer in quantizers}
    off = [
        name_
        for name_, child in children.items()
        if not isinstance(child, TensorQuantizer) or not child.is_enabled
    ]
    return f"not quantized: {' and '.join(off)} off" if off else ""
