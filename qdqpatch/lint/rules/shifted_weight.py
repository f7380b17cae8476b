"""OpenVINO: a weight has the zero point 0."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import OPENVINO_TRANSFORMATIONS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the zero point of the weight."""
    weight = site.operands[1]
    if not site.is_int8 or weight.dtype != "int8" or not weight.zero_point:
        return None
    return f"zero point {weight.zero_point} for its weight"


RULE = LintRule(
    name="shifted-weight",
    effect="stays float",
    operations=("linear",),
    reason="OpenVINO takes a weight with a zero point for one that is only stored in 8 bits: it is "
    "dequantized, its input too, and they are multiplied in float (seen in OpenVINO 2026.4).",
    fix="Quantize weights to int8 with zero point 0: qdqpatch export --target openvino.",
    documents=(OPENVINO_TRANSFORMATIONS,),
    check=check,
)
