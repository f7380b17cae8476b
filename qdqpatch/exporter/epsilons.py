"""Small numbers that keep a division finite are no zeros."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SMALLEST = 1e-8
"""What onnxscript's rules take for 0, and anything below."""


def keep_epsilons(graph: ir.Graph) -> None:
    """Save `x + 1e-10` from the rule of onnxscript that makes `x` of `x + 0`.

    It looks at scalars alone, so such a number gets an axis of 1, which changes nothing beside a tensor.
    """
    for node in list(graph):
        if node.op_type not in ("Add", "Sub"):
            continue
        for index, value in enumerate(node.inputs):
            constant = None if value is None else ir.convenience.get_const_tensor(value)
            other = node.inputs[1 - index]
            if constant is None or constant.shape.rank() != 0 or not _has_axes(other):
                continue
            number = constant.numpy()
            if 0 < abs(number) <= SMALLEST:
                with_axis = ir.node("Constant", [], {"value": ir.tensor(np.atleast_1d(number))})
                graph.insert_before(node, with_axis)
                node.replace_input_with(index, with_axis.outputs[0])


def _has_axes(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and value.shape.rank() > 0
