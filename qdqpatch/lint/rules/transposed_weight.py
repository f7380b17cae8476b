"""ONNX Runtime: a Transpose between DequantizeLinear and MatMul hides the weight from the fusion."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_SELECTORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look between the weight's DequantizeLinear and the operation."""
    weight = site.operands[1]
    return "Transpose between its weight's Q/DQ and MatMul" if "Transpose" in weight.between else None


RULE = LintRule(
    name="transposed-weight",
    effect="slower",
    operations=("linear",),
    reason="MatMul becomes an integer kernel if DequantizeLinear stands right before it. The runtime has to "
    "move each Transpose out of the way first, while loading; where it cannot, a float weight is transposed "
    "at every run.",
    fix="Store the int8 weight as MatMul reads it, (inputs, outputs), with axis 1 for its scales.",
    documents=(ORT_SELECTORS,),
    check=check,
)
