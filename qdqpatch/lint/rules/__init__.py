"""Which rules each engine has: one literal table.

To add one, write a file like `residual.py` and name it here.
"""

from qdqpatch.lint.rules import (
    documents,
    dq_feeds_matmul,
    float_between,
    float_gemm,
    float_weight,
    foreign_operator,
    fused_matmul,
    half_precision,
    integer_bias,
    integer_operator,
    not_quantized,
    operand_type,
    quantized_output,
    residual,
    scale_after_matmul,
    shifted_attention,
    shifted_weight,
    signed_input,
    signed_kernel,
    skip_layer_norm,
    symmetric,
    transposed_weight,
    unknown_operator,
    unsigned_key_value,
    weight_axis,
)
from qdqpatch.lint.rules.base import Document, Effect, LintRule

RULES: dict[str, tuple[LintRule, ...]] = {
    "tensorrt": (
        unknown_operator.RULE,
        operand_type.TENSORRT,
        symmetric.RULE,
        integer_bias.RULE,
        not_quantized.rule(documents.TENSORRT_EXPLICIT),
        residual.RULE,
        weight_axis.RULE,
        dq_feeds_matmul.RULE,
        scale_after_matmul.RULE,
        float_between.RULE,
    ),
    "onnxruntime": (
        not_quantized.rule(documents.ORT_QUANTIZATION),
        operand_type.ONNXRUNTIME,
        half_precision.RULE,
        float_gemm.RULE,
        signed_input.RULE,
        fused_matmul.RULE,
        signed_kernel.RULE,
        unsigned_key_value.RULE,
        quantized_output.RULE,
        float_weight.RULE,
        transposed_weight.RULE,
        skip_layer_norm.RULE,
    ),
    "openvino": (
        foreign_operator.RULE,
        not_quantized.rule(documents.OPENVINO_LOW_PRECISION),
        operand_type.OPENVINO,
        shifted_attention.RULE,
        shifted_weight.RULE,
        integer_operator.RULE,
    ),
}

__all__ = ["RULES", "Document", "Effect", "LintRule"]
