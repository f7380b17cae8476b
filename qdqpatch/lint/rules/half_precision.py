"""ONNX Runtime on the CPU: a weight that is dequantized to float16 stays out of the integer kernels."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_SELECTORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the type that the weight is dequantized to."""
    return "its weight is dequantized to float16" if site.is_int8 and site.operands[1].half else None


RULE = LintRule(
    name="half-precision",
    effect="stays float",
    operations=("linear",),
    reason="The CPU has no MatMul in float16, so the runtime puts Cast between DequantizeLinear and MatMul, "
    "and finds no Q/DQ there. Model Optimizer writes float16 unless told otherwise.",
    fix="Export in fp32 for the CPU: qdqpatch export --target onnxruntime.",
    documents=(ORT_SELECTORS,),
    check=check,
)
