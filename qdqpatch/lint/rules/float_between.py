"""TensorRT: no Q/DQ where the float is fused away."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_INPUTS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at what reads the result."""
    return f"Q/DQ between it and {site.quantized_before}" if site.quantized_before else None


RULE = LintRule(
    name="float-between",
    effect="slower",
    operations=("linear", "query x key", "residual add"),
    reason="TensorRT computes a matmul together with what follows it. Q/DQ before the activation, softmax or "
    "LayerNorm ends the fusion there; Q/DQ belongs before matmuls and adds.",
    fix="Quantize the inputs of matmuls and residual adds only.",
    documents=(TENSORRT_INPUTS,),
    check=check,
)
