"""Read the products and residual adds from a traced model, and what feeds each of their operands.

Data is what is computed from the model's inputs, masks and positions apart: what is added to attention's
scores is none. A residual add has two operands of data of one shape, the one computed from the other with a
product on the way; so an activation that adds a power of its input is none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

TWO = ("first", "second")
PRODUCTS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight"),
    "matmul": TWO,
    "bmm": TWO,
    "mm": TWO,
    "mv": TWO,
    "baddbmm": ("bias", *TWO),
    "addmm": ("bias", *TWO),
    "einsum": (),
    "scaled_dot_product_attention": ("query", "key", "value"),
    "conv1d": ("input", "weight"),
    "conv2d": ("input", "weight"),
    "conv3d": ("input", "weight"),
    "convolution": ("input", "weight"),
}
"""What is a product, and what its operands are called; those of einsum are numbered."""

ADDS = ("add", "add_")
ADD = "residual add"

UNCHANGING = frozenset(
    (
        "view", "reshape", "transpose", "permute", "expand", "clone", "contiguous", "unsqueeze",
        "squeeze", "slice", "select", "to", "_to_copy", "dropout", "unbind", "getitem", "split",
        "chunk", "alias", "detach", "t", "numpy_T", "flatten", "_unsafe_view", "repeat",
        "unflatten", "repeat_interleave", "lift_fresh_copy", "narrow", "movedim", "swapaxes",
        "expand_as", "view_as", "index", "index_select",
    )
)  # fmt: skip
"""What moves values and does not change them, so that a quantized tensor stays one."""

ASIDE = ("mask", "position")
"""Words in the names of inputs that are no data."""


@dataclass(frozen=True)
class Operand:
    """One operand of an operation.

    Attributes:
        name: What it is called, such as `input` or `weight`.
        quantizer: The path of the quantizer that it comes from; empty if no quantizer fed it.
        source: What feeds the operand, or its quantizer: a parameter, an input, or an operation and its
            module.
    """

    name: str
    quantizer: str
    source: str


@dataclass(frozen=True)
class Operation:
    """A product or a residual add on the path from the inputs to the outputs.

    Attributes:
        path: The module that computes it.
        kind: `linear`, `matmul`, `residual add`, ...
        operands: What it is computed of, a bias left out.
    """

    path: str
    kind: str
    operands: tuple[Operand, ...]

    @property
    def floats(self) -> tuple[Operand, ...]:
        """The operands that no quantizer fed."""
        return tuple(operand for operand in self.operands if not operand.quantizer)


def operations_of(program: ExportedProgram, quantizers: Collection[str], root: str) -> Iterator[Operation]:
    """Yield the operations of a trace in the order in which they run.

    Args:
        program: The trace.
        quantizers: The paths of all quantizers.
        root: What the traced module calls the model whose paths these are.
    """
    trace = _Trace(program, quantizers, root)
    for node in trace.order:
        if node.op != "call_function" or trace.quantizer_of(node):
            continue
        kind, nodes = _name(node), []
        if kind in PRODUCTS:
            nodes = _operands(node, kind)
        elif kind in ADDS and trace.is_residual_add(node):
            kind, nodes = ADD, list(zip(TWO, node.all_input_nodes, strict=True))
        if any(operand in trace.data for _, operand in nodes):
            operands = tuple(trace.operand(name, operand) for name, operand in nodes)
            yield Operation(trace.path_of(node), kind, operands)


class _Trace:
    """A trace's nodes, which of them are data, and which lie in a quantizer."""

    def __init__(self, program: ExportedProgram, quantizers: Collection[str], root: str) -> None:
        signature = program.graph_signature
        self.stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.inputs = {str(name) for name in signature.user_inputs}
        self.quantizers = frozenset(quantizers)
        self.root = f"{root}."
        self.order = {node: number for number, node in enumerate(program.graph.nodes)}
        self.data: set[Node] = set()
        for node in self.order:
            given = node.name in self.inputs and not any(word in node.name for word in ASIDE)
            if given or not self.data.isdisjoint(node.all_input_nodes):
                self.data.add(node)

    def path_of(self, node: Node) -> str:
        """Return the path of the module that computes a node."""
        stack = node.meta.get("nn_module_stack") or {}
        path = next((str(path) for path, _ in reversed(stack.values())), "")
        path = re.sub(r"@\d+", "", path)  # the number of the call, of a module that is called several times
        return path.removeprefix(self.root) if path.startswith(self.root) else ""

    def quantizer_of(self, node: Node) -> str:
        """Return the path of the quantizer that computes a node; empty if none does."""
        path = self.path_of(node)
        return path if path in self.quantizers else ""

    def operand(self, name: str, node: Node) -> Operand:
        """Say of an operand which quantizer it comes from, and what feeds that."""
        moved = self._behind(node, ())
        quantizer = self.quantizer_of(moved)
        return Operand(name, quantizer, self._source(self._behind(moved, (quantizer,))))

    def is_residual_add(self, node: Node) -> bool:
        """Whether an add has the operands of a residual."""
        operands = node.all_input_nodes
        if len(operands) != 2 or not all(operand in self.data for operand in operands):
            return False
        if _shape(operands[0]) != _shape(operands[1]):
            return False
        # Through quantizers: what is added is a copy of the residual.
        first, second = sorted(
            (self._behind(operand, self.quantizers) for operand in operands), key=self.order.__getitem__
        )
        return self._is_product_between(first, second)

    def _is_product_between(self, first: Node, last: Node) -> bool:
        """Whether the second of two nodes is computed from the first with a product on the way."""
        seen: set[tuple[Node, bool]] = set()
        waiting = [(last, False)]
        while waiting:
            node, passed = waiting.pop()
            if node is first:
                if passed:
                    return True
                continue
            if (node, passed) in seen or self.order[node] < self.order[first]:
                continue
            seen.add((node, passed))
            passed = passed or _name(node) in PRODUCTS
            waiting += [(before, passed) for before in node.all_input_nodes]
        return False

    def _behind(self, node: Node, through: Collection[str]) -> Node:
        """Go back through what only moves values, and through the arithmetic of the quantizers named."""
        while node.op == "call_function" and node.all_input_nodes:
            inside = self.quantizer_of(node)
            if inside and inside not in through:
                return node
            if not inside and _name(node) not in UNCHANGING:
                return node
            node = node.all_input_nodes[0]
        return node

    def _source(self, node: Node) -> str:
        if node.op != "call_function":
            stored = self.stored.get(node.name)
            return f"input {node.name}" if stored is None else stored.removeprefix(self.root)
        return f"{_name(node)} of {self.path_of(node) or 'the model'}"


def _operands(node: Node, kind: str) -> list[tuple[str, Node]]:
    """Return names and nodes of what a product multiplies."""
    names: Sequence[str] = PRODUCTS[kind]
    given: Sequence[object] = node.args
    if kind == "einsum":
        rest = node.args[1]
        given = list(rest) if isinstance(rest, (list, tuple)) else list(node.args[1:])
        names = [str(number) for number in range(1, len(given) + 1)]
    return [
        (name, operand)
        for name, operand in zip(names, given, strict=False)
        if isinstance(operand, Node) and name != "bias"
    ]


def _name(node: Node) -> str:
    """Return the name of the function that a node calls, without the form of its arguments."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def _shape(node: Node) -> tuple[object, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None
