"""ONNX Runtime: FusedMatMul has no integer kernel."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_SELECTORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the operator."""
    return "it is FusedMatMul" if site.op_type == "FusedMatMul" else None


RULE = LintRule(
    name="fused-matmul",
    effect="stays float",
    operations=("linear", "query x key", "probabilities x value"),
    reason="The runtime looks for Q/DQ around MatMul and Gemm, not around FusedMatMul.",
    fix='Write MatMul. transformers.exporters makes FusedMatMul of it under ort_fusions="cpu".',
    documents=(ORT_SELECTORS,),
    check=check,
)
