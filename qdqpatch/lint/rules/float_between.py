"""TensorRT: no Q/DQ between attention's scores and softmax."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_ATTENTION, TENSORRT_INPUTS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at what reads the result."""
    return "Q/DQ between it and softmax" if site.quantized_scores else None


RULE = LintRule(
    name="float-between",
    effect="slower",
    operations=("query x key",),
    reason="TensorRT computes both matmuls and softmax in one kernel, but not with Q/DQ before softmax: then "
    "they are three, and the scores go through memory (seen in TensorRT for RTX 1.7; before an activation "
    "or a LayerNorm it fuses Q/DQ all the same).",
    fix="Quantize the inputs of matmuls and residual adds only.",
    documents=(TENSORRT_ATTENTION, TENSORRT_INPUTS),
    check=check,
)
