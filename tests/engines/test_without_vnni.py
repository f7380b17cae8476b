"""Weights whose pairs fit, in the kernels that ONNX Runtime takes where there is no VNNI."""

import subprocess
import sys
from pathlib import Path

import pytest

PRODUCTS = """
import itertools
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)


def weights(inputs, outputs, total):
    first = random.integers(total - 127, 128, (inputs // 2, outputs))
    signs = random.choice([-1, 1], first.shape)
    pairs = np.stack([first * signs, (total - first) * signs], 1).reshape(-1, outputs)
    return np.concatenate([pairs, np.full((inputs % 2, outputs), 127)]).astype(np.int8)


def product(levels, weight):
    operands = ["levels", "weight", "scale", "scale", "zero", "weight_zero"]
    node = helper.make_node("MatMulIntegerToFloat", operands, ["product"], domain="com.microsoft")
    constants = {
        "weight": weight, "scale": np.float32(1), "zero": np.uint8(0), "weight_zero": np.int8(0)
    }
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("levels", TensorProto.UINT8, levels.shape)],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"levels": levels})[0]


for total in (128, 129):
    exact = 0
    for rows, inputs, outputs in itertools.product((1, 5, 16), (2, 7, 64, 99), (1, 8, 33)):
        weight = weights(inputs, outputs, total)
        levels = np.full((rows, inputs), 255, np.uint8)
        levels[1:] = random.integers(0, 256, levels[1:].shape)
        exact += (product(levels, weight) == levels.astype(int) @ weight.astype(int)).all()
    print(total, exact)
"""


@pytest.mark.slow
def test_pairs_are_exact_to_the_last_level_in_avx2(benchmark_module, tmp_path: Path) -> None:
    module = benchmark_module("without_vnni")
    if (reason := module.lacking()) is not None:
        pytest.skip(reason)
    command = [sys.executable, "-c", PRODUCTS]
    found = subprocess.run(
        command, env=module.environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["128", "36", "129", "0"]
