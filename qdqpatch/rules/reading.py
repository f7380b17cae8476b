"""Read what a class computes from the source of its `forward` and of what that calls; nothing is run."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdqpatch.rules.flow import merged, possible_adds, products_of_data
from qdqpatch.rules.source import SourceError, definition
from qdqpatch.rules.values import PRODUCT_CALLS, Add

WEIGHED_CALLS = (*PRODUCT_CALLS, "linear", "addmm", "mm", "conv1d", "conv2d", "conv3d", "grouped_mm")
"""Functions that multiply by a weight."""

LIBRARIES = (
    "torch.",
    "transformers.generation.",
    "transformers.integrations.",
    "transformers.modeling_",
    "transformers.utils.",
)
"""Where what models inherit stands."""

AT_ONCE = ("scaled_dot_product_attention", "multi_head_attention_forward")
"""Functions that compute all of attention."""

_PARTS: dict[type, tuple[Part, ...]] = {}


@dataclass(frozen=True)
class Part:
    """A method of a class, or a function that it calls.

    Attributes:
        name: Its name.
        function: It.
        is_method: Whether it is a method of the class.
        is_called: Whether it is called, and not only handed on.
        between: What lies between the tensors that it is given, as `flow.Value.through`.
    """

    name: str
    function: types.FunctionType
    is_method: bool
    is_called: bool = True
    between: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The names that it uses, those of functions inside it too."""
        return frozenset(_names(self.function.__code__))

    @functools.cached_property
    def tree(self) -> ast.FunctionDef | None:
        """Its source; None if that cannot be read."""
        try:
            return definition(self.function)
        except SourceError:
            return None

    @functools.cached_property
    def multiplies(self) -> bool:
        """Whether it has a product of what it was given."""
        if self.names.isdisjoint((*PRODUCT_CALLS, *AT_ONCE)) and not _has_operator(self.function.__code__):
            return False
        return self.tree is None or not self.names.isdisjoint(AT_ONCE) or bool(products_of_data(self.tree))

    @functools.cached_property
    def adds(self) -> list[Add]:
        """What its residual adds are, and what could be some."""
        return [] if self.tree is None else possible_adds(self.tree, of_given=self.name != "forward")

    def function_calls(self) -> dict[str, frozenset[str]]:
        """Return the functions that it calls by their name, with what lies between tensors that they get."""
        if self.tree is None:
            return {}
        called = [node.func.id for node in ast.walk(self.tree) if _calls_name(node)]  # type: ignore[attr-defined]  # it has
        return dict.fromkeys(called, frozenset[str]()) | merged(self.tree)


def parts_of(cls: type) -> tuple[Part, ...]:
    """Return what runs when a module of a class is called, as far as it is the class's own: `forward` first.

    Followed are methods of the class and functions of model files; and functions that torch is to
    differentiate by rules of their own, which stand in classes.
    """
    if cls not in _PARTS:
        _PARTS[cls] = tuple(_followed(cls))
    return _PARTS[cls]


def _followed(cls: type) -> Iterable[Part]:
    found: dict[object, Part] = {}
    waiting = [Part("forward", _function(cls, "forward"), True)] if hasattr(cls, "forward") else []
    while waiting:
        part = waiting.pop(0)
        function = part.function
        if not isinstance(function, types.FunctionType) or function in found:
            continue
        if not _is_followed(function, part.is_method):
            continue
        found[function] = part
        calls = part.function_calls()
        for used in dict.fromkeys(_names(function.__code__)):
            if part.is_method and callable(getattr(cls, used, None)):
                waiting.append(Part(used, _function(cls, used), True, between=calls.get(used, frozenset())))
            other = function.__globals__.get(used)
            if isinstance(other, types.FunctionType):
                between = calls.get(used, frozenset()) if part.is_method else part.between
                waiting.append(
                    Part(used, _function(function.__globals__, used), False, used in calls, between)
                )
            elif inspect.isclass(other) and not issubclass(other, nn.Module):
                waiting.append(Part(used, _function(other, "forward"), False))
        if part.is_method and "super" in function.__code__.co_names:
            below = next((base for base in cls.__mro__ if function in map(_plain, vars(base).values())), cls)
            for base in cls.__mro__[cls.__mro__.index(below) + 1 :]:
                if part.name in vars(base):
                    waiting.append(Part(part.name, _plain(vars(base)[part.name]), True))
                    break
        for inner in _closed_over(function):
            waiting.append(Part(inner.__name__, inner, part.is_method, between=part.between))
    return found.values()


def why_unread(module: nn.Module) -> str:
    """Return why nothing is known of what a module computes; empty if its `forward` can be read."""
    cls = type(module)
    forward: Any = _function(cls, "forward")
    own = inspect.unwrap(vars(module).get("forward", forward))
    if getattr(own, "__func__", own) is not forward:
        return "its forward was set on the instance, and what that adds is not known"
    if not isinstance(forward, types.FunctionType):
        return (
            f"the forward of {cls.__name__} is no function written in Python, and what it adds is not known"
        )
    if (forward.__module__ or "").startswith("torch."):
        return ""
    try:
        definition(forward)
    except SourceError as error:
        return f"{error}, and what it adds is not known"
    return ""


def multiplies(cls: type) -> bool:
    """Whether a class itself computes a product of what it is given."""
    return not cls.__module__.startswith("torch.") and any(part.multiplies for part in parts_of(cls))


def uses(cls: type, names: tuple[str, ...]) -> bool:
    """Whether a class itself, or what it calls, uses one of the names."""
    return any(not part.names.isdisjoint(names) for part in parts_of(cls))


def not_called(cls: type) -> dict[str, str]:
    """Return the children that a class does not call on what it is given, by name, with the reason."""
    read: set[str] = set()
    on_data: set[str] = set()
    on_own: set[str] = set()
    for part in parts_of(cls):
        if not part.is_method or part.tree is None or not part.tree.args.args:
            continue
        own = part.tree.args.args[0].arg
        for node in ast.walk(part.tree):
            if isinstance(node, ast.Attribute) and node.attr == "weight":
                read.add(_child(node.value, own))
            elif isinstance(node, ast.Call) and (name := _child(node.func, own)):
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                is_own = bool(given) and all(_child(argument, own) for argument in given)
                (on_own if is_own else on_data).add(name)
            elif isinstance(node, ast.Call):  # it may be called there
                on_data.update(_child(argument, own) for argument in node.args)
    reasons = dict.fromkeys(
        sorted(read - on_data - on_own - {""}),
        "its weight is read by the module that has it, which does not call it",
    )
    reasons |= dict.fromkeys(sorted(on_own - on_data), "it computes from the model's own tensors alone")
    return reasons


def _function(owner: Any, name: str) -> Any:
    """Return what a class or a namespace has of that name, without decorators."""
    found = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
    found = inspect.unwrap(found) if callable(found) else found
    return getattr(found, "__func__", found)


def _closed_over(function: types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield the functions that a function has from around it, as decorators have what they wrap."""
    for cell in function.__closure__ or ():
        try:
            found = inspect.unwrap(cell.cell_contents)
        except ValueError:  # it is empty yet
            continue
        if isinstance(found, types.FunctionType):
            yield found


def _plain(found: Any) -> Any:
    return inspect.unwrap(found) if isinstance(found, types.FunctionType) else found


def _calls_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _child(node: ast.AST, own: str) -> str:
    """Return the name of what a node takes from the module itself; empty if it takes nothing."""
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == own
    return node.attr if is_own else ""  # type: ignore[attr-defined]  # it is an attribute


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _has_operator(code: types.CodeType) -> bool:
    """Whether it has the operator `@`."""
    return any(
        step.opname in ("BINARY_MATRIX_MULTIPLY", "INPLACE_MATRIX_MULTIPLY") or step.argrepr in ("@", "@=")
        for step in dis.get_instructions(code)
    ) or any(_has_operator(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))


def _is_followed(function: types.FunctionType, is_method: bool) -> bool:
    """Whether a function is a model's own, and not of the libraries that models are made with."""
    module = function.__module__ or ""
    if module.startswith(LIBRARIES):
        return False
    return is_method or not module.startswith("transformers.") or module.startswith("transformers.models.")
