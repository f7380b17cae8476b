"""Find the residual adds in a method: adds of a value to what was computed from it.

Read from the source in the order in which it runs, both ways of a branch. An add counts if one operand was
computed from the other, as in `x + f(x)`, or if one is an argument of the method and the other was computed,
as in BERT's `output(hidden, residual)`. Adds of numbers, of tuples, of a module's own tensors, of masks and
of positions do not, and none that a softmax reads: what is added to scores is no residual, and masked scores
have no range.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from dataclasses import replace

from qdqpatch.rules.values import (
    ASIDE,
    MODULE_NAMES,
    NO_TENSOR_CALLS,
    NO_TENSOR_METHODS,
    NO_TENSORS,
    NUMBER_CALLS,
    PRODUCT,
    SOFTMAX,
    UNCHANGING,
    Add,
    Value,
    is_product,
    operands,
)


def residual_adds(function: ast.FunctionDef) -> list[Add]:
    """Return the residual adds of a method."""
    return [add for add in possible_adds(function) if add.is_certain]


def possible_adds(function: ast.FunctionDef, of_given: bool = False) -> list[Add]:
    """Return the residual adds of a method, and adds beside products that could be some.

    Args:
        function: The method, or a function.
        of_given: Whether adds of two of its arguments are among them, as in a function for the purpose.
    """
    flow = _Flow(function, of_given=of_given)
    return _Flow(function, flow.scored, of_given).adds if flow.scored else flow.adds


def merged(function: ast.FunctionDef) -> dict[str, frozenset[str]]:
    """Return the functions that a method gives several tensors, by name, with what lies between those."""
    return _Flow(function).merged


def products_of_data(function: ast.FunctionDef) -> list[ast.AST]:
    """Return the products of what a method was given, masks and positions apart, with whatever it may be."""
    return _Flow(function).products


class _Flow:
    """Follows values through the statements of a method, or of a function.

    Args:
        function: Its definition.
        scored: Adds that are no residual ones.
        of_given: Whether adds of two arguments may be some.

    Attributes:
        adds: The residual adds.
        scored: Adds that a softmax reads.
        products: The products of what the method was given, be it with a weight of the module's own.
        merged: The functions that are given several tensors, by name, with what lies between those.
    """

    def __init__(
        self, function: ast.FunctionDef, scored: Collection[ast.AST] = (), of_given: bool = False
    ) -> None:
        self.adds: list[Add] = []
        self.scored: set[ast.AST] = set()
        self.products: list[ast.AST] = []
        self.merged: dict[str, frozenset[str]] = {}
        self.ignored, self.of_given = scored, of_given
        self.multiplies = any(map(is_product, ast.walk(function)))
        self.passed = self.numbers = self.loops = 0
        arguments = function.args
        names = [
            argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        ]
        self.values: dict[str, Value] = {}
        self.own = names[0] if names and names[0] in MODULE_NAMES else ""
        for name in names:
            is_data = name != self.own and not any(word in name for word in ASIDE)
            self.values[name] = self.new(is_argument=is_data, is_tensor=is_data)
        if arguments.vararg is not None:
            self.values[arguments.vararg.arg] = self.new(is_argument=True)
        self.run(function.body)

    def new(self, *parts: Value, is_argument: bool = False, is_tensor: bool = True) -> Value:
        self.numbers += 1
        sources = frozenset[int]().union(*(part.sources | {part.number} for part in parts))
        sums = frozenset[ast.AST]().union(*(part.sums for part in parts))
        through = frozenset[str]().union(*(part.through for part in parts))
        is_number = bool(parts) and all(part.is_number for part in parts)
        return Value(
            self.numbers,
            sources,
            is_argument,
            is_tensor and not is_number,
            sums=sums,
            through=through,
            is_number=is_number,
        )

    def number(self) -> Value:
        return replace(self.new(is_tensor=False), is_number=True)

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
        elif isinstance(node, ast.Match):
            self.value(node.subject)
            return self.cases(node.cases)
        elif isinstance(node, (ast.For, ast.While, ast.With, ast.Try)):
            if isinstance(node, ast.For):
                self.assign(node.target, self.value(node.iter))
            elif isinstance(node, ast.While):
                self.value(node.test)
            elif isinstance(node, ast.With):
                for item in node.items:
                    self.value(item.context_expr)
            is_loop = isinstance(node, (ast.For, ast.While))
            self.loops += is_loop
            self.run([*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])])
            self.loops -= is_loop
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

    def cases(self, cases: Sequence[ast.match_case]) -> bool:
        """Follow the cases of a `match` of which one runs, or none."""
        return bool(cases) and self.branches(cases[0].body, [ast.Match(ast.Constant(None), [*cases[1:]])])

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
        made = self.new(left, right, is_tensor=left.is_tensor or right.is_tensor)
        if is_product(node):
            return self.product(node, made)
        if is_add and not isinstance(first, ast.Tuple) and not isinstance(second, ast.Tuple):
            self.add(node, left, right)
            return replace(made, sums=made.sums | {node})
        return made

    def product(self, node: ast.AST, made: Value) -> Value:
        if made.is_tensor:
            self.products.append(node)
        return replace(made, sums=frozenset(), through=made.through | {PRODUCT})

    def add(self, node: ast.AST, left: Value, right: Value) -> None:
        if node in self.ignored or not (left.is_tensor and right.is_tensor) or left.number == right.number:
            return
        if right.is_from(left) or left.is_from(right):
            residual_first = right.is_from(left)
        elif left.is_argument != right.is_argument:
            residual_first = left.is_argument
        elif left.is_argument and self.of_given:
            residual_first = True
        else:
            return
        is_derived = right.is_from(left) or left.is_from(right)
        is_certain = is_derived or not (self.multiplies or left.is_argument is right.is_argument)
        self.passed += is_certain
        through = left.through ^ right.through
        self.adds.append(
            Add(node, self.passed, residual_first, self.loops > 0, through, is_derived, is_certain)
        )

    def value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name):
            return self.values.setdefault(node.id, self.new(is_tensor=False))
        if isinstance(node, ast.NamedExpr):
            value = self.value(node.value)
            self.assign(node.target, value)
            return value
        if isinstance(node, (ast.Constant, ast.Lambda, ast.Compare, ast.JoinedStr)):
            return self.number()
        if isinstance(node, ast.BinOp):
            return self.operation(node, isinstance(node.op, ast.Add))
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.IfExp):
            self.value(node.test)
            return self.either(self.value(node.body), self.value(node.orelse))
        parts = [self.value(part) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
        if isinstance(node, ast.Attribute):
            if node.attr in NO_TENSORS:
                return self.number()  # which says nothing of its values
            if isinstance(node.value, ast.Name) and node.value.id == self.own:
                return replace(self.new(*parts, is_tensor=False), through=frozenset({node.attr}))
        if isinstance(node, ast.Subscript) and parts[0].is_number:
            return self.number()
        is_tensor = not isinstance(node, (ast.Tuple, ast.List)) and any(part.is_tensor for part in parts)
        return self.new(*parts, is_tensor=is_tensor)

    def call(self, node: ast.Call) -> Value:
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("add", "add_") and len(operands(node)) == 2:
            return self.operation(node, True)
        function = self.value(node.func)
        given = [*map(self.value, node.args), *(self.value(keyword.value) for keyword in node.keywords)]
        if name in (NO_TENSOR_METHODS if is_method else NO_TENSOR_CALLS) or (
            name in NUMBER_CALLS and given and all(part.is_number for part in given)
        ):
            return self.number() if name != "tuple" else self.new(*given, is_tensor=False)
        if is_method and name in UNCHANGING:
            return self.value(node.func.value)  # type: ignore[attr-defined]  # it is an attribute
        made = replace(self.new(function, *given), is_tensor=True, is_number=False)
        tensors = [part for part in given if part.is_tensor]
        called = ast.unparse(node.func)
        if (not is_method or called == f"{self.own}.{name}") and len(tensors) > 1:
            ways = [part.through for part in tensors]
            between = frozenset[str]().union(*ways) - frozenset[str].intersection(*ways)
            self.merged[name] = self.merged.get(name, frozenset()) | between
        if is_product(node):
            return self.product(
                node, replace(made, is_tensor=any(part.is_tensor for part in (function, *given)))
            )
        if SOFTMAX in called.lower():
            self.scored |= made.sums
        if self.own and called.startswith(f"{self.own}."):
            return made if "drop" in name else replace(made, sums=frozenset())
        return made
