"""Find the matrix products that a method computes of two tensors, in the order of its source."""

from __future__ import annotations

import ast

CALLS = ("matmul", "bmm")


def products(function: ast.FunctionDef) -> list[ast.expr]:
    """Return `a @ b`, `torch.matmul(a, b)`, `torch.bmm(a, b)` and the like, from the top down."""
    found = [
        node
        for node in ast.walk(function)
        if (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS)
    ]
    return sorted(found, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0))
