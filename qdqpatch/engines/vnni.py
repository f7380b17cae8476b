"""Whether this processor multiplies uint8 by int8 exactly, which x86 does only where it has VNNI."""

from __future__ import annotations

import functools
import importlib

import numpy as np

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
