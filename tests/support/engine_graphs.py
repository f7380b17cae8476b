"""What engines make of an ONNX file: the products that they compute with integers, and those in float."""

from pathlib import Path

import onnx
import onnxruntime
import openvino

INTEGER = dict.fromkeys(
    (
        "MatMulIntegerToFloat",
        "QLinearMatMul",
        "QGemm",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "QAttention",
    ),
    1,
)
FLOAT = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "MatMulNBits"), 1),
    **{"Attention": 3, "QAttention": 2, "MultiHeadAttention": 2},
}
"""How many products of an encoder each kernel of ONNX Runtime computes; query, key and value are one."""


def optimized(file: Path) -> onnx.GraphProto:
    """Return the graph that ONNX Runtime runs on the CPU."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(file.with_name("optimized.onnx"))
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return onnx.load(file.with_name("optimized.onnx")).graph


def products_of_onnxruntime(file: Path) -> tuple[int, int]:
    """Return how many products ONNX Runtime computes with integers, and how many in float."""
    operators = [node.op_type for node in optimized(file).node]
    return (
        sum(INTEGER.get(operator, 0) for operator in operators),
        sum(FLOAT.get(operator, 0) for operator in operators),
    )


def linears_of_openvino(file: Path) -> tuple[int, int]:
    """Return how many Linears OpenVINO computes with integers of 8 bits, and how many in float."""
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    types = []
    for node in compiled.get_runtime_model().get_ops():
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected":
            types.append(node.inputs()[0].get_element_type().get_type_name())
    integers = sum(name in ("i8", "u8") for name in types)
    return integers, len(types) - integers
