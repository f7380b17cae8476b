"""ONNX Runtime: a weight that the file holds in float is quantized anew whenever the model is loaded."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_OPTIMIZATIONS
from qdqpatch.lint.sites import INT8, Site


def check(site: Site) -> str | None:
    """Look at the weight."""
    weight = site.operands[1]
    return "its weight is float before Q/DQ" if weight.dtype in INT8 and weight.stored == "float" else None


RULE = LintRule(
    name="float-weight",
    effect="slower",
    operations=("linear",),
    reason="The file is four times the size it needs to be, and loading it has to fold QuantizeLinear into "
    "every weight: 4 to 6 s for BERT-base instead of 0.8 s.",
    fix="Store the weight as int8, with DequantizeLinear alone behind it.",
    documents=(ORT_OPTIMIZATIONS,),
    check=check,
)
