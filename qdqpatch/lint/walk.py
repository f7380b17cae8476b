"""Ways through an ONNX graph, along what values come from and go to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import onnx_ir as ir

VIEWS = frozenset({"Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Cast"})
"""Operators that pass values on, in another shape or float type."""

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def value_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an input; None where the node has not got it."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value | None) -> bool:
    """Say whether a value is known before the model runs."""
    if value is None:
        return False
    seen: set[ir.Value | None] = {None}
    left: list[ir.Value | None] = [value]
    while left:
        before = left.pop()
        if before is None or before in seen or before.is_initializer():
            continue
        seen.add(before)
        node = before.producer()
        if node is None or (not node.inputs and node.op_type != "Constant"):
            return False
        left.extend(node.inputs)
    return True


def behind_views(value: ir.Value) -> tuple[ir.Value, tuple[str, ...]]:
    """Go back over operators that change the shape only; return where they begin, and them in order."""
    names: list[str] = []
    node = value.producer()
    while node is not None and node.op_type in VIEWS and node.inputs[0] is not None:
        names.insert(0, node.op_type)
        value = node.inputs[0]
        node = value.producer()
    return value, tuple(names)


def readers_of(value: ir.Value) -> list[ir.Node]:
    """Return what computes with a value, each node once; its shape does not count."""
    nodes = dict.fromkeys(usage.node for usage in value.uses())
    return [node for node in nodes if node.op_type not in ("Shape", "Size")]


def first_readers(value: ir.Value, through: Collection[str], to: Collection[str]) -> list[ir.Node]:
    """Return the first nodes of some operators that a value gets to through some others."""
    found: list[ir.Node] = []
    seen: set[ir.Node] = set()
    left = [value]
    while left:
        for node in readers_of(left.pop()):
            if node in seen:
                continue
            seen.add(node)
            if node.op_type in to:
                found.append(node)
            elif node.op_type in through:
                left.extend(node.outputs)
    return found


def everything_after(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Return all that depends on some nodes."""
    return _reached(nodes, lambda node: (reader for output in node.outputs for reader in readers_of(output)))


def everything_before(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """Return all that some nodes depend on."""
    return _reached(nodes, lambda node: (value.producer() for value in node.inputs if value is not None))


def _reached(
    nodes: Iterable[ir.Node], neighbours: Callable[[ir.Node], Iterable[ir.Node | None]]
) -> set[ir.Node]:
    """Return what steps from a node to its neighbours lead to; the nodes themselves only if they do."""
    found: set[ir.Node] = set()
    left = list(nodes)
    while left:
        new = {node for node in neighbours(left.pop()) if node is not None and node not in found}
        found |= new
        left.extend(new)
    return found
