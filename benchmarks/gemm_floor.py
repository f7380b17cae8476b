"""How long the integer GEMMs of a BERT's Linears take in ONNX Runtime: no int8 file can be faster."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from common import in_turn
from onnx import TensorProto, helper, numpy_helper
from transformers import BertConfig

from qdqpatch.engines.sessions import ONNX_RUNTIME


def gemm_seconds(config: BertConfig, shape: tuple[int, int], threads: int, rounds: int) -> float:
    """Return the seconds of the integer GEMMs of all Linears at a shape, each measured by itself."""
    rows, hidden, wide = shape[0] * shape[1], config.hidden_size, config.intermediate_size
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for inner, outer in ((hidden, hidden), (hidden, wide), (wide, hidden)):
            path = Path(folder) / f"{inner}-{outer}.onnx"
            _gemm(path, rows, inner, outer)
            session = ONNX_RUNTIME.load(path, threads)
            feed = {"a": np.random.default_rng(0).integers(0, 255, (rows, inner), np.uint8)}
            runs[inner, outer] = lambda session=session, feed=feed: session.run(feed)
        medians = in_turn({str(key): run for key, run in runs.items()}, rounds)
    square, up, down = medians.values()
    return config.num_hidden_layers * (4 * square + up + down)


def _gemm(path: Path, rows: int, inner: int, outer: int) -> None:
    weight = np.random.default_rng(0).integers(-127, 127, (inner, outer), np.int8)
    constants = {"b": weight, "scale": np.float32(0.01), "az": np.uint8(128), "bz": np.int8(0)}
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMulIntegerToFloat",
                ["a", "b", "scale", "scale", "az", "bz"],
                ["y"],
                domain="com.microsoft",
            )
        ],
        "gemm",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outer])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
