"""What the values and the operations in a method's source are, to follow them (`flow.py`)."""

from __future__ import annotations

import ast
from dataclasses import dataclass

FUNCTION_OWNERS = ("torch",)
MODULE_NAMES = ("self", "module")
"""What the module itself is called where it is the first argument."""

ASIDE = ("mask", "bias", "position")
"""Words in the names of arguments that are no data."""

SOFTMAX = "softmax"
NO_TENSORS = ("shape", "dtype", "device", "ndim", "is_cuda")
NO_TENSOR_CALLS = ("len", "int", "float", "range", "bool", "isinstance", "getattr", "tuple")
NO_TENSOR_METHODS = ("size", "dim", "numel")
NUMBER_CALLS = ("max", "min", "abs", "ceil", "floor", "round")
"""Functions whose result is a number if all that they are given are numbers."""

UNCHANGING = ("to", "float", "half", "double", "type", "type_as", "contiguous", "clone")
"""Methods that give the same numbers."""

PRODUCT_CALLS = ("matmul", "bmm", "einsum", "baddbmm", "scaled_dot_product_attention")
"""Functions that multiply tensors by tensors; `a @ b` does too."""

PRODUCT = "@"


@dataclass(frozen=True)
class Value:
    """What a name or an expression stands for.

    Attributes:
        number: Tells values apart.
        sources: The numbers of all values that it was computed from.
        is_argument: Whether it is an argument of the method as it was given.
        is_tensor: False for what is certainly none.
        one_of: The numbers of the values of which it is one, where it depends on a branch; else its own.
        sums: The adds that it was computed from, with no product and no module since.
        through: The names of what of the module was used on the way, and `PRODUCT` for a product.
        is_number: Whether it is a number or several, and no tensor.
    """

    number: int
    sources: frozenset[int] = frozenset()
    is_argument: bool = False
    is_tensor: bool = True
    one_of: frozenset[int] = frozenset()
    sums: frozenset[ast.AST] = frozenset()
    through: frozenset[str] = frozenset()
    is_number: bool = False

    def is_from(self, other: Value) -> bool:
        """Whether it was computed from another one, or from one that this may be."""
        return not self.sources.isdisjoint(other.one_of or {other.number})


@dataclass(frozen=True)
class Add:
    """A residual add.

    Attributes:
        node: The operation in the tree.
        number: Its place along the way that the method runs, from 1; adds of two branches of which one
            runs have the same.
        residual_first: Whether the residual is the first operand.
        in_loop: Whether it stands in a loop.
        through: What lies between the operands, as `Value.through`.
        is_derived: Whether one operand was computed from the other.
        is_certain: Whether it is known for a residual add, and may be quantized.
    """

    node: ast.AST
    number: int
    residual_first: bool
    in_loop: bool = False
    through: frozenset[str] = frozenset()
    is_derived: bool = False
    is_certain: bool = True


def operands(node: ast.AST) -> list[ast.expr]:
    """Return the two operands of an add or of a matrix product, in order; nothing of other operations."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign):
        return [node.target, node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        given = list(node.args)
        owner = node.func.value  # `th.add(a, b)` is a function of whatever `th` is: no method takes two
        if isinstance(owner, ast.Name) and (owner.id in FUNCTION_OWNERS or len(given) == 2):
            given += [named[name] for name in ("input",) if name in named and not given]
        else:
            given.insert(0, node.func.value)
        given += [named[name] for name in ("other", "mat2", "tensor2") if name in named and len(given) == 1]
        return given[:2]
    return []


def is_product(node: ast.AST) -> bool:
    """Whether an expression is a product of tensors."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") in PRODUCT_CALLS
