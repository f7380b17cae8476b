"""Find the residual adds in a method: adds of a value to what was computed from it.

Read from the source in the order in which it runs, both ways of a branch. An add counts if one operand was
computed from the other, as in `x + f(x)`, or if one is an argument of the method and the other was computed,
as in BERT's `output(hidden, residual)`. Adds of numbers, of tuples, and of a module's own tensors do not.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

FUNCTION_OWNERS = ("torch",)
NO_TENSORS = ("shape", "dtype", "device", "ndim", "is_cuda")
NO_TENSOR_CALLS = (
    "size",
    "dim",
    "numel",
    "len",
    "int",
    "float",
    "range",
    "bool",
    "isinstance",
    "getattr",
    "tuple",
)


@dataclass(frozen=True)
class Value:
    """What a name or an expression stands for.

    Attributes:
        number: Tells values apart.
        sources: The numbers of all values that it was computed from.
        is_argument: Whether it is an argument of the method as it was given.
        is_tensor: False for what is certainly none.
        one_of: The numbers of the values of which it is one, where it depends on a branch; else its own.
    """

    number: int
    sources: frozenset[int] = frozenset()
    is_argument: bool = False
    is_tensor: bool = True
    one_of: frozenset[int] = frozenset()

    def is_from(self, other: Value) -> bool:
        """Whether it was computed from another one, whichever that is."""
        return (other.one_of or {other.number}) <= self.sources


@dataclass(frozen=True)
class Add:
    """A residual add.

    Attributes:
        node: The operation in the tree.
        number: Its place along the way that the method runs, from 1; adds of two branches of which one
            runs have the same.
        residual_first: Whether the residual is the first operand.
    """

    node: ast.AST
    number: int
    residual_first: bool


def residual_adds(function: ast.FunctionDef) -> list[Add]:
    """Return the residual adds of a method."""
    return _Flow(function).adds


def operands(node: ast.AST) -> list[ast.expr]:
    """Return the two operands of an add or of a matrix product, in order; nothing of other operations."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign):
        return [node.target, node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        given = list(node.args)
        if isinstance(node.func.value, ast.Name) and node.func.value.id in FUNCTION_OWNERS:
            given += [named[name] for name in ("input",) if name in named and not given]
        else:
            given.insert(0, node.func.value)
        given += [named[name] for name in ("other", "mat2", "tensor2") if name in named and len(given) == 1]
        return given[:2]
    return []


class _Flow:
    """Follows values through the statements of a method."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.adds: list[Add] = []
        self.passed = 0
        self.numbers = 0
        arguments = function.args
        names = [
            argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        ]
        self.values = {name: self.new(is_argument=True) for name in names[1:]}
        self.values[names[0]] = self.new(is_tensor=False)
        self.run(function.body)

    def new(self, *parts: Value, is_argument: bool = False, is_tensor: bool = True) -> Value:
        self.numbers += 1
        sources = frozenset[int]().union(*(part.sources | {part.number} for part in parts))
        return Value(self.numbers, sources, is_argument, is_tensor)

    def run(self, statements: Sequence[ast.stmt]) -> bool:
        """Follow statements; return whether they leave the method."""
        return any(self.statement(statement) for statement in statements)

    def statement(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            self.bind(node.targets, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.bind([node.target], node.value)
        elif isinstance(node, ast.AugAssign):
            self.assign(node.target, self.operation(node, isinstance(node.op, ast.Add)))
        elif isinstance(node, ast.If):
            self.value(node.test)
            return self.branches(node.body, node.orelse)
        elif isinstance(node, (ast.For, ast.While, ast.With, ast.Try)):
            if isinstance(node, ast.For):
                self.assign(node.target, self.value(node.iter))
            elif isinstance(node, ast.While):
                self.value(node.test)
            self.run([*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])])
        elif isinstance(node, (ast.Return, ast.Expr)) and node.value is not None:
            self.value(node.value)
        return isinstance(node, (ast.Return, ast.Raise))

    def branches(self, body: Sequence[ast.stmt], other: Sequence[ast.stmt]) -> bool:
        """Follow two branches of which one runs."""
        before, passed = dict(self.values), self.passed
        ends = []
        for statements in (body, other):
            self.values, self.passed = dict(before), passed
            left = self.run(statements)
            if not left:
                ends.append((self.values, self.passed))
        if not ends:
            return True
        self.passed = max(count for _, count in ends)
        self.values = ends[0][0]
        for values, _ in ends[1:]:
            for name in self.values.keys() | values.keys():
                self.values[name] = self.either(self.values.get(name), values.get(name))
        return False

    def either(self, one: Value | None, other: Value | None) -> Value:
        known = [value for value in (one, other) if value is not None]
        if len({value.number for value in known}) == 1:
            return known[0]
        is_tensor = any(value.is_tensor for value in known)
        made = self.new(*known, is_argument=all(value.is_argument for value in known), is_tensor=is_tensor)
        one_of = frozenset[int]().union(*(value.one_of or {value.number} for value in known))
        return replace(made, one_of=one_of)

    def bind(self, targets: Sequence[ast.expr], source: ast.expr) -> None:
        """Assign an expression, a tuple part by part."""
        if isinstance(source, ast.Tuple) and isinstance(targets[0], ast.Tuple) and len(targets) == 1:
            parts = [self.value(part) for part in source.elts]
            if len(parts) == len(targets[0].elts):
                for target, part in zip(targets[0].elts, parts, strict=True):
                    self.assign(target, part)
                return
            value = self.new(*parts)
        else:
            value = self.value(source)
        for target in targets:
            self.assign(target, value)

    def assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self.values[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self.assign(part, self.new(value))

    def operation(self, node: ast.expr | ast.stmt, is_add: bool) -> Value:
        """Follow an operation of two operands, which may be a residual add."""
        first, second = operands(node)
        left, right = self.value(first), self.value(second)
        if is_add and not isinstance(first, ast.Tuple) and not isinstance(second, ast.Tuple):
            self.add(node, left, right)
        return self.new(left, right, is_tensor=left.is_tensor or right.is_tensor)

    def add(self, node: ast.AST, left: Value, right: Value) -> None:
        if not (left.is_tensor and right.is_tensor) or left.number == right.number:
            return
        if right.is_from(left) or left.is_from(right):
            residual_first = right.is_from(left)
        elif left.is_argument != right.is_argument:
            residual_first = left.is_argument
        else:
            return
        self.passed += 1
        self.adds.append(Add(node, self.passed, residual_first))

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name):
            return self.values.setdefault(node.id, self.new(is_tensor=False))
        if isinstance(node, ast.NamedExpr):
            value = self.value(node.value)
            self.assign(node.target, value)
            return value
        if isinstance(node, (ast.Constant, ast.Lambda, ast.Compare, ast.JoinedStr)):
            return self.new(is_tensor=False)
        if isinstance(node, ast.BinOp):
            return self.operation(node, isinstance(node.op, ast.Add))
        if isinstance(node, ast.Call):
            return self.call(node)
        parts = [self.value(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        is_tensor = any(part.is_tensor for part in parts)
        if isinstance(node, (ast.Tuple, ast.List)) or (
            isinstance(node, ast.Attribute) and node.attr in NO_TENSORS
        ):
            is_tensor = False
        return self.new(*parts, is_tensor=is_tensor)

    def call(self, node: ast.Call) -> Value:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("add", "add_") and len(operands(node)) == 2:
            return self.operation(node, True)
        parts = [self.value(node.func), *map(self.value, node.args)]
        parts += [self.value(keyword.value) for keyword in node.keywords]
        return self.new(*parts, is_tensor=name not in NO_TENSOR_CALLS)
