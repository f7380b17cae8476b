"""TensorRT: explicit quantization, signed and symmetric, DequantizeLinear straight before every MatMul.

NVIDIA, "Working with Quantized Types" in the TensorRT documentation. Weights have their scales along
axis 0, as in NVIDIA's own exports of QDQBERT.
"""

from __future__ import annotations

from qdqpatch.exporter.rules.qdq_attention import QDQAttention
from qdqpatch.exporter.rules.qdq_linear import QDQLinear
from qdqpatch.exporter.rules.qdq_quantizer import QDQActivation
from qdqpatch.exporter.rules.quant_embedding import LookUpIntegers
from qdqpatch.exporter.targets.base import ONNX_PATH, Target, write_onnx


def target(float_weights: bool = False) -> Target:
    """Return the target with weights stored in int8 or, for TensorRT before int8 weights, in fp32."""
    return Target(
        name="tensorrt",
        opset=18,
        passes=(
            (
                QDQLinear(float_weights=float_weights, transposed=False),
                QDQAttention(),
                QDQActivation(),
                LookUpIntegers(),
            ),
        ),
        file=ONNX_PATH,
        write=write_onnx,
        signed=True,
        float8=True,
    )
