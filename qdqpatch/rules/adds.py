"""FX-trace the block that owns a residual add and quantize both operands.

Only the block itself is traced, every child a leaf, and the rewritten `forward` becomes that of a
subclass of the block's own class: `isinstance` holds, and instances share one class a graph.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qdqpatch.nn.names import LOCAL, RESIDUAL
from qdqpatch.rules.base import Match, Miss, Operand
from qdqpatch.rules.subclass import subclass

ADD_FUNCTIONS = (operator.add, operator.iadd, torch.add)
ADD_METHODS = ("add", "add_")


class UntraceableError(Exception):
    """The block has no residual add that can be rewritten; the message says why."""


@dataclass(frozen=True)
class ResidualAdds:
    """Blocks that add their input to what they computed get a quantizer on each operand.

    Attributes:
        inside: The block classes, such as `BertSelfOutput`.
        part: The field of `QDQConfig` that turns this on.
    """

    inside: tuple[type[nn.Module], ...]
    part: str = "residual_adds"

    def match(self, model: nn.Module) -> Iterator[Match | Miss]:
        """Yield a `Match` for each block whose add is found, a `Miss` with the reason for the others."""
        for path, block in model.named_modules():
            if isinstance(block, self.inside):
                try:
                    becomes = quantized_class(block)
                except UntraceableError as error:
                    yield Miss(path, "residual add", str(error))
                else:
                    quantizers: dict[str, Operand] = {LOCAL: "activation", RESIDUAL: "activation"}
                    yield Match(path, "residual add", quantizers, becomes)


class BlockTracer(fx.Tracer):
    """Records a block's own operations; what its children do inside is not looked at."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True: every child is a leaf."""
        return True


def quantized_class(block: nn.Module) -> type[nn.Module]:
    """Return a subclass of the float block's class that quantizes both operands of its residual add.

    Raises:
        UntraceableError: If torch.fx cannot trace the block's `forward` faithfully, or it does not have
            exactly one add of which exactly one operand is the block's own input.
    """
    graph = _trace(block)
    add = _residual_add(graph)
    for operand in dict.fromkeys(add.all_input_nodes):
        with graph.inserting_before(add):
            name = RESIDUAL if operand.op == "placeholder" else LOCAL
            add.replace_input_with(operand, graph.call_module(name, (operand,)))
    code = graph.python_code("self").src
    forward = type(fx.GraphModule(_targets(block, graph), graph)).forward
    return subclass(type(block), code, forward, quantized_class)


def _trace(block: nn.Module) -> fx.Graph:
    """Trace a shallow copy, for a tracer leaves its constants on what it traces."""
    double = copy.copy(block)
    double.__class__ = type("Traced", (type(block),), {"training": property(_refuse_mode)})
    try:
        graph = BlockTracer().trace(double)
    except Exception as error:  # whatever a forward does when it is given proxies
        raise UntraceableError(f"torch.fx cannot trace {type(block).__name__}.forward: {error}") from error
    for node in graph.nodes:
        if node.op == "placeholder" and node.args and node.users:
            raise UntraceableError(f"its argument {node.target} is optional, and a trace takes it as given")
        if node.op == "get_attr" and not hasattr(block, str(node.target).partition(".")[0]):
            raise UntraceableError("its forward makes a tensor, which a trace would freeze")
    return graph


def _refuse_mode(block: nn.Module) -> bool:
    raise UntraceableError("it asks for self.training, which a trace would freeze")


def _residual_add(graph: fx.Graph) -> fx.Node:
    adds: list[fx.Node] = []
    for node in graph.nodes:
        is_add = node.target in (ADD_FUNCTIONS if node.op == "call_function" else ADD_METHODS)
        inputs = [operand.op == "placeholder" for operand in node.all_input_nodes]
        if node.op in ("call_function", "call_method") and is_add and sorted(inputs) == [False, True]:
            adds.append(node)
    if len(adds) != 1:
        raise UntraceableError(
            f"its forward has {len(adds)} adds of the block's input to a computed tensor, and the rule "
            "needs exactly one"
        )
    return adds[0]


def _targets(block: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """Return what the graph refers to; quantizers that are not there yet stand in as Identity."""
    targets: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            owner, _, name = str(node.target).rpartition(".")
            targets[str(node.target)] = getattr(block.get_submodule(owner), name, nn.Identity())
    return targets
