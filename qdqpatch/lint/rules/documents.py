"""The documentation that rules come from."""

from qdqpatch.lint.rules.base import Document

_ORT = "https://onnxruntime.ai/docs/performance/model-optimizations"
_ORT_SOURCE = "https://github.com/microsoft/onnxruntime/blob/{}/onnxruntime/core/optimizer/qdq_transformer/{}"
_TENSORRT = "https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library"

ORT_QUANTIZATION = Document("ONNX Runtime, Quantize ONNX Models", f"{_ORT}/quantization.html")
ORT_OPTIMIZATIONS = Document("ONNX Runtime, Graph Optimizations", f"{_ORT}/graph-optimizations.html")
ORT_S8_TO_U8 = Document(
    "ONNX Runtime, QDQS8ToU8Transformer",
    _ORT_SOURCE.format("07be093d94272774d858f09249fa9ec94ceadf96", "qdq_s8_to_u8.cc"),
)
ORT_SELECTORS = Document(
    "ONNX Runtime, MatMulNodeGroupSelector",
    _ORT_SOURCE.format("32d19a81e2386de8527e65096786faae3a7fc813", "selectors_actions/qdq_selectors.cc"),
)

TENSORRT_TYPES = Document("TensorRT, Working with Quantized Types", f"{_TENSORRT}/work-quantized-types.html")
TENSORRT_EXPLICIT = Document(
    "TensorRT, Explicit Quantization", f"{_TENSORRT}/quantized-types-explicit-quantization.html"
)
TENSORRT_ATTENTION = Document("TensorRT, Fused Attention", f"{_TENSORRT}/transformers-fused-attention.html")
TENSORRT_OPERATORS = Document(
    "onnx-tensorrt, Supported ONNX Operators",
    "https://github.com/onnx/onnx-tensorrt/blob/6d0ab7be324d02c7feb3a306b6fdbeae84f71ddc/docs/operators.md",
)
TENSORRT_RESIDUAL = Document(
    "TensorRT, Add Custom QDQ Insertion Case",
    "https://docs.nvidia.com/deeplearning/tensorrt/tensorflow-quantization-toolkit/docs/docs/"
    "add_custom_qdq_cases.html",
)
TENSORRT_INPUTS = Document(
    "NVIDIA, Accelerating Quantized Networks with the QAT Toolkit and TensorRT",
    "https://developer.nvidia.com/blog/accelerating-quantized-networks-with-qat-toolkit-and-tensorrt/",
)
MODELOPT_ATTENTION = Document(
    "NVIDIA Model Optimizer, pull request 1289", "https://github.com/NVIDIA/Model-Optimizer/pull/1289"
)

_OPENVINO = "https://docs.openvino.ai"
OPENVINO_LOW_PRECISION = Document(
    "OpenVINO, Low Precision IR (INT8 Inference)",
    f"{_OPENVINO}/2024/documentation/openvino-ir-format/intermediate-representation-int8-inference.html",
)
OPENVINO_TRANSFORMATIONS = Document(
    "OpenVINO, Low Precision Transformations", f"{_OPENVINO}/latest/openvino_docs_OV_UG_lpt.html"
)
OPENVINO_OPERATORS = Document(
    "OpenVINO, issue 13177", "https://github.com/openvinotoolkit/openvino/issues/13177"
)
