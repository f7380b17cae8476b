"""OpenVINO: of ONNX Runtime's own operators it knows some."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import OPENVINO_OPERATORS
from qdqpatch.lint.sites import Site

KNOWN = frozenset(
    {
        "Attention",
        "BiasAdd",
        "BiasGelu",
        "DynamicQuantizeMatMul",
        "EmbedLayerNormalization",
        "FastGelu",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "GroupQueryAttention",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "QLinearAdd",
        "QLinearMul",
        "QLinearSoftmax",
        "QuickGelu",
        "RotaryEmbedding",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)
"""Those of com.microsoft that OpenVINO 2026.4 reads in an encoder, by trying each."""


def check(site: Site) -> str | None:
    """Look at the operator and its domain."""
    if not site.domain or (site.domain == "com.microsoft" and site.op_type in KNOWN):
        return None
    return f"{site.domain}.{site.op_type} is not an operator that it reads"


RULE = LintRule(
    name="foreign-operator",
    effect="refused",
    operations=("linear", "query x key", "probabilities x value", "residual add", "operator"),
    reason="OpenVINO reads operators of ONNX. Of those of com.microsoft it knows some, which differ from "
    "version to version (here those of 2026.4); it refuses a file with any other.",
    fix="Export with Q/DQ around MatMul: qdqpatch export --target openvino.",
    documents=(OPENVINO_OPERATORS,),
    check=check,
)
