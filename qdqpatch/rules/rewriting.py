"""Subclasses that compute what a module's class computes, with quantizers around operands of its own code.

What changes is data (`Wrap`): which operation of which method, and the names of the quantizers. A class is
made once for a float class and its changes, under a lock; instances are copied and pickled by way of both.
"""

from __future__ import annotations

import ast
import functools
import threading
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from qdqpatch.errors import QuantizedError
from qdqpatch.nn.attention import IMPLEMENTATION, float_matmuls
from qdqpatch.rules.flow import residual_adds
from qdqpatch.rules.products import products
from qdqpatch.rules.source import Method, SourceError, function_beside
from qdqpatch.rules.values import operands


@dataclass(frozen=True, order=True)
class Wrap:
    """Quantizers for the operands of one operation.

    Attributes:
        method: The method that has the operation; or a function that `forward` calls with the module first.
        kind: What it is.
        number: Which one of its kind, from 1.
        quantizers: Names of the child modules that the operands pass through: the computed operand's and the
            residual's of an add, the first one's and the second one's of a product.
    """

    method: str
    kind: Literal["residual add", "product"]
    number: int
    quantizers: tuple[str, str]


GUARD: Literal["guard"] = "guard"
"""The change that lets a module refuse any attention implementation but the one that quantizes."""

Change = Wrap | Literal["guard"]

_MADE: dict[tuple[type[nn.Module], frozenset[Change]], type[nn.Module]] = {}
_LOCK = threading.RLock()


def rewritten(float_class: type[nn.Module], changes: Collection[Change]) -> type[nn.Module]:
    """Return the subclass of `float_class` that has the changes: always the same one for the same changes.

    Its name is the float class's, because transformers and accelerate tell by a class's name which modules
    must not be split over devices.

    Raises:
        SourceError: If a method's source cannot be read, or has no such operation.
    """
    key = (float_class, frozenset(changes))
    with _LOCK:
        if key not in _MADE:
            _MADE[key] = _make(*key)
        return _MADE[key]


def combined(current: type[nn.Module], becomes: type[nn.Module]) -> type[nn.Module]:
    """Return the class that has the changes of both; both were made of one float class."""
    changes: frozenset[Change] = getattr(current, "changes", frozenset())
    if not changes:
        return becomes
    return rewritten(becomes.float_class, changes | becomes.changes)  # type: ignore[attr-defined]


def portable(cls: type[nn.Module]) -> tuple[type[nn.Module], frozenset[Change]]:
    """Return what a class can be pickled by: its float class and changes; itself if it was not made here."""
    changes: frozenset[Change] = getattr(cls, "changes", frozenset())
    return (cls.float_class, changes) if changes else (cls, changes)  # type: ignore[attr-defined]


def unguarded(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the class without its guard, if it has one."""
    changes: frozenset[Change] = getattr(cls, "changes", frozenset())
    if GUARD not in changes:
        return cls
    float_class: type[nn.Module] = cls.float_class  # type: ignore[attr-defined]
    return rewritten(float_class, changes - {GUARD}) if len(changes) > 1 else float_class


def _make(float_class: type[nn.Module], changes: frozenset[Change]) -> type[nn.Module]:
    wraps = [change for change in changes if isinstance(change, Wrap)]
    names = {wrap.method for wrap in wraps}
    functions = {name: function for name in names if (function := _function(float_class, name)) is not None}
    namespace: dict[str, Any] = {
        name: _wrapped_method(float_class, name, [wrap for wrap in wraps if wrap.method == name], functions)
        for name in (names | {"forward"} if functions else names)
    }
    if GUARD in changes:
        namespace["forward"] = _guarded(float_class, namespace.get("forward", float_class.forward))
    namespace |= {
        "__doc__": f"{float_class.__name__} with quantizers.",
        "__module__": float_class.__module__,
        "__qualname__": float_class.__qualname__,
        "__reduce_ex__": lambda self, _: (_restore, (float_class, changes, self.__dict__)),
        "float_class": float_class,
        "changes": changes,
    }
    return type(float_class.__name__, (float_class,), namespace)


def _restore(float_class: type[nn.Module], changes: frozenset[Change], state: dict[str, Any]) -> nn.Module:
    module = float_class.__new__(float_class)
    module.__setstate__(state)
    module.__class__ = rewritten(float_class, changes)
    return module


def _function(cls: type[nn.Module], name: str) -> types.FunctionType | None:
    """Return the function that is meant where a class has no method of that name."""
    return None if hasattr(cls, name) else function_beside(cls, name)


def _wrapped_method(
    float_class: type[nn.Module],
    name: str,
    wraps: list[Wrap],
    functions: Mapping[str, types.FunctionType],
) -> Callable[..., Any]:
    method = Method(float_class, name)
    named: dict[ast.AST, tuple[str, str]] = {}
    for wrap in wraps:
        found = named
        if wrap.kind == "residual add":
            local, residual = wrap.quantizers
            found = {
                add.node: (residual, local) if add.residual_first else (local, residual)
                for add in residual_adds(method.tree)
                if add.number == wrap.number
            }
        else:
            found = dict.fromkeys(products(method.tree)[wrap.number - 1 : wrap.number], wrap.quantizers)
        if not found:
            raise SourceError(f"{float_class.__name__}.{name} has no {wrap.kind} number {wrap.number}")
        named |= found
    _Wrapper(method.self_name, named).visit(method.tree)
    if name == "forward" and functions:
        calls = _Calls(method, functions)
        calls.visit(method.tree)
        if calls.missing:
            raise SourceError(f"{float_class.__name__}.forward does not call {', '.join(calls.missing)}")
    return method.compile()


class _Calls(ast.NodeTransformer):
    """Lets a `forward` call a function that takes the module as a method of it, which can be rewritten.

    A function is called by its name, or taken from a table of functions: then whichever the table gives.

    Attributes:
        missing: The functions that it does not call.
    """

    def __init__(self, method: Method, functions: Mapping[str, types.FunctionType]) -> None:
        self._self, self._globals = method.self_name, method.plain.__globals__
        self._functions = functions
        self.missing = set(functions)

    def visit_Call(self, node: ast.Call) -> ast.AST:  # ast names it so
        """Exchange one call."""
        self.generic_visit(node)
        first = node.args[0] if node.args else None
        name = self._name(node.func)
        if name is None or not isinstance(first, ast.Name) or first.id != self._self:
            return node
        self.missing.discard(name)
        node.func = ast.copy_location(ast.Attribute(first, name, ast.Load()), node.func)
        del node.args[0]
        return ast.fix_missing_locations(node)

    def _name(self, called: ast.expr) -> str | None:
        if isinstance(called, ast.Name):
            return called.id if called.id in self._functions else None
        if isinstance(called, ast.Subscript) and isinstance(called.value, ast.Name):
            table = self._globals.get(called.value.id)
            values = list(table.values()) if isinstance(table, Mapping) else []
            return next((name for name, function in self._functions.items() if function in values), None)
        return None


class _Wrapper(ast.NodeTransformer):
    """Puts `self.quantizer(...)` around operands."""

    def __init__(self, self_name: str, named: dict[ast.AST, tuple[str, str]]) -> None:
        self.self_name = self_name
        self.named = named

    def visit(self, node: ast.AST) -> ast.AST:
        """Change the operations inside a node, then the node itself."""
        names = self.named.get(node)
        self.generic_visit(node)
        if names is None:
            return node
        outer = node
        if isinstance(node, ast.AugAssign):
            if not isinstance(node.target, ast.Name):
                raise SourceError("it adds in place to something that has no name")
            value = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
            outer = ast.copy_location(ast.Assign([node.target], ast.copy_location(value, node)), node)
            node = value
        for operand, name in zip(operands(node), names, strict=True):
            _replace(node, operand, self._quantized(operand, name))
        return ast.fix_missing_locations(outer)

    def _quantized(self, operand: ast.expr, name: str) -> ast.Call:
        quantizer = ast.Attribute(ast.Name(self.self_name, ast.Load()), name, ast.Load())
        return ast.copy_location(ast.Call(quantizer, [operand], []), operand)


def _replace(node: ast.AST, old: ast.expr, new: ast.expr) -> None:
    """Put an expression in the place of another one right below a node."""
    for parent in (node, getattr(node, "func", None), *getattr(node, "keywords", ())):
        for field, value in ast.iter_fields(parent) if parent is not None else ():
            if value is old:
                setattr(parent, field, new)
                return
            if isinstance(value, list) and any(item is old for item in value):
                value[next(place for place, item in enumerate(value) if item is old)] = new
                return


def _guarded(float_class: type[nn.Module], inner: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `forward` refuse to compute where its quantizers would not be used.

    They are used by our attention implementation alone, which `model.set_attn_implementation` can
    exchange at any time; the operands would then silently stay float.
    """

    @functools.wraps(inner)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        implementation = getattr(self.config, "_attn_implementation", None)
        if implementation != IMPLEMENTATION:
            raise QuantizedError(
                f"The model's attention implementation is {implementation!r}, which does not quantize the "
                f"matmuls of {float_class.__name__}. Call model.set_attn_implementation({IMPLEMENTATION!r}), "
                f"or {float_matmuls()}."
            )
        return inner(self, *args, **kwargs)

    return forward
