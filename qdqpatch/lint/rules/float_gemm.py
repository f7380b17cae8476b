"""ONNX Runtime: Gemm with a float bias is computed with integers only if its result is quantized."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_SELECTORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look behind a Gemm, or behind what the runtime makes one of."""
    if not site.is_int8 or not site.float_gemm or site.output_quantized:
        return None
    is_gemm = site.op_type == "Gemm"
    return "it is Gemm with a float bias" if is_gemm else "its shapes are fixed, its bias float"


RULE = LintRule(
    name="float-gemm",
    effect="stays float",
    operations=("linear",),
    reason="Where all shapes are fixed the runtime makes Gemm of MatMul and the Add of its bias. Gemm with a "
    "float bias becomes an integer kernel only if QuantizeLinear alone reads its result (seen in ONNX "
    "Runtime 1.32).",
    fix="Export with dynamic shapes, or with com.microsoft.MatMulIntegerToFloat, which takes the bias: "
    "qdqpatch export --target onnxruntime.",
    documents=(ORT_SELECTORS,),
    check=check,
)
