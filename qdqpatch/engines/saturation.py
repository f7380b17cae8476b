"""Whether sums of a file's products would saturate where there is no VNNI (`qdqpatch/engines/vnni.py`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from qdqpatch.engines.openvino_graph import source_of

SCALED = ("Multiply", "Convert")
"""OpenVINO's operations that make a weight of its levels."""


def may_saturate(path: Path) -> bool:
    """Return whether ONNX Runtime multiplies uint8 by int8 in a file, and sums of that may be too large.

    Returns:
        True also where onnx_ir is not installed, and nothing is known.
    """
    try:
        import onnx_ir as ir  # comes with an extra, and so does what reads graphs
    except ImportError:
        return True

    from qdqpatch.lint.operands import INPUTS, read_operands

    return any(
        (first.dtype, second.dtype) == ("uint8", "int8") and not second.fits_pairs
        for node in ir.load(path).graph.all_nodes()
        if node.op_type in INPUTS
        for first, second in [read_operands(node)]
    )


def may_saturate_in_openvino(path: Path) -> bool:
    """Return the same of OpenVINO's integer kernels, whatever types a file has."""
    model = importlib.import_module("openvino").Core().read_model(path)
    return any(
        source_of(operation, 0).get_type_name() == "FakeQuantize" and not _fits_pairs(operation)
        for operation in model.get_ops()
        if operation.get_type_name() == "MatMul"
    )


def _fits_pairs(product: Any) -> bool:
    """Return whether a product's second operand is a weight of int8 whose pairs of levels fit."""
    weight = source_of(product, 1, SCALED)
    if weight.get_type_name() != "Constant" or weight.get_element_type().get_type_name() != "i8":
        return False
    from qdqpatch.nn.pairs import pairs_fit  # only here, for torch comes with it

    levels = weight.data
    return pairs_fit(levels if product.get_attributes()["transpose_b"] else levels.swapaxes(-1, -2))
