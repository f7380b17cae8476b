"""Which branches of a method the settings of a module turn off, so that what stands there never runs."""

from __future__ import annotations

import ast
from typing import Any

from torch import nn

CHANGING = ("training", "gradient_checkpointing", "_attn_implementation")
"""Settings that change after a model was built."""

_UNKNOWN = object()


def turned_off(function: ast.FunctionDef, module: nn.Module) -> set[ast.AST]:
    """Return the nodes of a method that never run in a module.

    A branch is off if its condition is one of the module's own settings, such as `self.is_gated` or
    `self.proj is None`, and that is the other way round.
    """
    own = function.args.args[0].arg if function.args.args else ""
    off: set[ast.AST] = set()
    for node in ast.walk(function):
        if not isinstance(node, (ast.If, ast.IfExp)):
            continue
        value = _value(node.test, own, module)
        if value is _UNKNOWN:
            continue
        branch = node.orelse if value else node.body
        for statement in branch if isinstance(branch, list) else [branch]:
            off.update(ast.walk(statement))
    return off


def _value(node: ast.expr, own: str, module: nn.Module) -> Any:
    """Return the value of an expression of a module's settings, or `_UNKNOWN`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        values = [_value(part, own, module) for part in node.elts]
        return _UNKNOWN if _UNKNOWN in values else values
    if isinstance(node, ast.Attribute):
        return _setting(node, own, module)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = _value(node.operand, own, module)
        return value if value is _UNKNOWN else not value
    if isinstance(node, ast.BoolOp):
        decides = isinstance(node.op, ast.Or)
        values = [_value(part, own, module) for part in node.values]
        if any(value is not _UNKNOWN and bool(value) is decides for value in values):
            return decides
        return _UNKNOWN if any(value is _UNKNOWN for value in values) else not decides
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        left, right = (_value(part, own, module) for part in (node.left, node.comparators[0]))
        if left is not _UNKNOWN and right is not _UNKNOWN:
            return _compared(left, node.ops[0], right)
    return _UNKNOWN


def _setting(node: ast.Attribute, own: str, module: nn.Module) -> Any:
    """Return an attribute of the module or of its config: a number, a text, None, or True for a module."""
    names = [node.attr]
    inner = node.value
    while isinstance(inner, ast.Attribute):
        names.append(inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name) or inner.id != own or not {*CHANGING}.isdisjoint(names):
        return _UNKNOWN
    value: Any = module
    for name in reversed(names):
        try:
            value = getattr(value, name)
        except Exception:  # whatever a property's own code raises
            return _UNKNOWN
    if isinstance(value, nn.Module):
        return True
    return value if value is None or isinstance(value, (bool, int, float, str)) else _UNKNOWN


def _compared(left: Any, operation: ast.cmpop, right: Any) -> Any:
    if isinstance(operation, (ast.Is, ast.Eq)):
        return left == right
    if isinstance(operation, (ast.IsNot, ast.NotEq)):
        return left != right
    if isinstance(operation, (ast.In, ast.NotIn)) and isinstance(right, (list, str)):
        return (left in right) is isinstance(operation, ast.In)
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        if isinstance(operation, ast.Gt):
            return left > right
        if isinstance(operation, ast.Lt):
            return left < right
    return _UNKNOWN
