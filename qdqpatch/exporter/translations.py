"""Operators of torch that torch.onnx takes for something else, translated here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_scatter_reduce

op: Any = opset18
"""Its operators also take Python's numbers, which their types do not say."""


def scatter_reduce(self: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
    """Scatter means by sums and counts: torch.onnx keeps the last value of each place (onnxscript 0.7)."""
    if reduce != "mean":
        return aten_scatter_reduce(self, dim, index, src, reduce, include_self)
    total = aten_scatter_reduce(self, dim, index, src, "sum", include_self)
    own = op.Expand(op.CastLike(float(include_self), self), op.Shape(self))
    one = op.CastLike(1.0, src)
    ones = op.Expand(one, op.Shape(src))
    count = op.ScatterElements(own, index, ones, axis=dim, reduction="add")
    return op.Div(total, op.Max(count, op.CastLike(1.0, self)))


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.scatter_reduce.two: scatter_reduce}
"""What `torch.onnx.export` takes as `custom_translation_table`."""
