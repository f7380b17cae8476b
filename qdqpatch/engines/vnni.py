"""Whether this processor multiplies uint8 by int8 exactly, which x86 does only where it has VNNI."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np

VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})
"""OpenVINO's operations that move values."""

SCALED = frozenset({"Multiply", "Convert"})
"""Those that make a weight of its levels."""

PAIRS = 16
"""Pairs of products to add up; one of 2 * 255 * 127 is more than int16 holds."""


@functools.cache
def saturates() -> bool:
    """Return whether ONNX Runtime's products of uint8 and int8 are wrong on this processor.

    x86 without VNNI multiplies with vpmaddubsw, which adds two products in int16 and saturates: sums of large
    levels come out too small. Products of uint8 and uint8 take another instruction, and are exact. OpenVINO's
    kernels saturate where ONNX Runtime's do. It is measured, once, with the largest levels.

    Returns:
        True if they are wrong; False also where onnx or onnxruntime is not installed, and nothing is known.
    """
    try:
        parser, ort = importlib.import_module("onnx.parser"), importlib.import_module("onnxruntime")
    except ImportError:
        return False
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        product (uint8[1, {2 * PAIRS}] a, int8[{2 * PAIRS}, 1] b) => (int32[1, 1] y) {{
            y = MatMulInteger (a, b)
        }}"""
    )
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a, b = np.full((1, 2 * PAIRS), 255, np.uint8), np.full((2 * PAIRS, 1), 127, np.int8)
    (found,) = session.run(None, {"a": a, "b": b})
    return int(found.item()) != 2 * PAIRS * 255 * 127


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


def may_saturate_in_openvino(model: Any) -> bool:
    """Return the same of OpenVINO's integer kernels.

    Args:
        model: An `openvino.Model`.
    """
    return any(
        _source(operation, 0, VIEWS).get_type_name() == "FakeQuantize" and not _fits_pairs(operation)
        for operation in model.get_ops()
        if operation.get_type_name() == "MatMul"
    )


def _source(node: Any, place: int, passed: frozenset[str]) -> Any:
    """Return the operation that an input comes from, behind those that are passed over."""
    source = node.input_value(place).get_node()
    return _source(source, 0, passed) if source.get_type_name() in passed else source


def _fits_pairs(product: Any) -> bool:
    """Return whether a product's second operand is a weight of int8 whose pairs of levels fit."""
    weight = _source(product, 1, SCALED)
    if weight.get_type_name() != "Constant" or weight.get_element_type().get_type_name() != "i8":
        return False
    from qdqpatch.nn.pairs import pairs_fit  # only here, for torch comes with it

    levels = weight.data
    return pairs_fit(levels if product.get_attributes()["transpose_b"] else levels.swapaxes(-1, -2))
