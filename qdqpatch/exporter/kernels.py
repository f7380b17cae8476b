"""Which matmuls of a model the engine computes with integer kernels, and why the others stay float."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from qdqpatch.exporter.symbolic_operators import DOMAIN, FAKE_QUANTIZE
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT, WEIGHT, letters_of, operand
from qdqpatch.nn.quantizer import TensorQuantizer

MATMULS = ("MatMul", "Gemm", "MatMulIntegerToFloat")
PRODUCTS = {("q", "k"): "query_x_key", ("a", "v"): "probabilities_x_value"}
"""How attention's matmuls are called after their module, by their operands; others go by the letters."""

FOLLOWERS = ("Add", "Div", "Mul")
"""What engines make one operation of with the matmul that comes before."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch.onnx notes the modules that a node is from."""

TIMES = "_x_"
AGAIN = "#"
"""Between the name of a matmul whose module runs several times and the number of a run but the first."""

MOVES = (
    "Cast",
    "Div",
    "Expand",
    "Identity",
    "Mul",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""What may be between a quantizer and the matmul that it is for."""


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
        name: The path of its module, with the operands for attention's, such as `.query_x_key`; and `#2`
            where the module runs for the second time.
        integer: Whether an integer kernel computes it.
        reason: Why not; empty if one does.
    """

    name: str
    integer: bool
    reason: str = ""


def product_name(operands: tuple[str, str]) -> str:
    """Return what a product is called after its module, by the letters of its operands' quantizers."""
    return PRODUCTS.get(operands, TIMES.join(operands))


def name_products(graph: ir.Graph) -> None:
    """Call the matmuls of two quantized tensors that a model computes itself after their quantizers.

    The graph is as it was traced: quantizers are whole.
    """
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        paths = [path for path in map(_quantizer, node.inputs) if path is not None]
        letters = [letters for letters in map(letters_of, paths) if letters is not None]
        if len(letters) == 2:
            node.name = f"{paths[0].rpartition('.')[0]}.{product_name((letters[0], letters[1]))}"
            node.metadata_props.pop(SCOPES, None)


def _quantizer(value: ir.Value | None) -> str | None:
    """Return the path of the quantizer that a value is from; None if it is from something else."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVES and node.domain == "" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != FAKE_QUANTIZE or node.domain != DOMAIN:
        return None
    return node.attributes["path"].as_string()


def name_after_modules(graph: ir.Graph) -> None:
    """Call the matmuls that the exporter named after their module, and drop what else it noted.

    Its notes hold the paths of source files on the machine that exported.
    """
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
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


def number_runs(graph: ir.Graph) -> None:
    """Give matmuls of a module that runs several times a name for each run."""
    runs = Counter[str]()
    for node in graph:
        if node.op_type in MATMULS and node.name:
            runs[node.name] += 1
            if runs[node.name] > 1:
                node.name += f"{AGAIN}{runs[node.name]}"


def matmuls(graph: ir.Graph) -> dict[str, list[str]]:
    """Return the names of a graph's matmuls, each with all that an engine may call it by, its own first.

    An engine that makes one operation of a matmul and what scales it or is added to it calls that after the
    last. What depends on no input, such as DeBERTa's keys of relative positions, is left out: engines compute
    it when they load the file.
    """
    found: dict[str, list[str]] = {}
    computed = set(graph.inputs)
    for node in graph:
        if computed.isdisjoint(node.inputs):
            continue
        computed.update(node.outputs)
        if node.op_type in MATMULS and node.name:
            names = [node.name, node.outputs[0].name]
            readers = [use.node for use in node.outputs[0].uses()]
            while len(readers) == 1 and readers[0].op_type in FOLLOWERS:
                names += [readers[0].name, readers[0].outputs[0].name]
                readers = [use.node for use in readers[0].outputs[0].uses()]
            found[node.name] = [name for name in names if name]
    return found


def match(
    model: nn.Module, names: Mapping[str, Collection[str]], kernels: Iterable[Kernel]
) -> list[Operation]:
    """Say of each matmul whether an engine's kernels compute it with integers.

    Args:
        model: The quantized model.
        names: What `matmuls` returned.
        kernels: The engine's.
    """
    by_name = {name: kernel for kernel in kernels for name in kernel.names}
    operations = []
    for name, aliases in names.items():
        kernel = next((by_name[alias] for alias in aliases if alias in by_name), None)
        # What the model leaves float is float, even inside a kernel that multiplies integers elsewhere.
        reason = _float_in(model, name)
        if not reason and (kernel is None or not kernel.integer):
            reason = f"the engine took {kernel.kind if kernel else 'another kernel'}"
        operations.append(Operation(name, not reason, reason))
    return operations


def _float_in(model: nn.Module, name: str) -> str:
    """Return why a matmul is float in the model already; empty if it is not."""
    owner, _, last = name.partition(AGAIN)[0].rpartition(".")
    operands = next((letters for letters, product in PRODUCTS.items() if product == last), None)
    if operands is None and TIMES in last:
        first, _, second = last.partition(TIMES)
        operands = first, second
    try:
        module = model.get_submodule(owner if operands else f"{owner}.{last}".removeprefix("."))
    except AttributeError:  # torch.onnx loses the names of float Linears where it converts to an old opset
        return "not quantized"
    if operands is not None:
        quantizers = [operand(letters) for letters in operands]
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
