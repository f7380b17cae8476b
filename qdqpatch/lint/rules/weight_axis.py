"""TensorRT: a weight has one scale, or one for each output."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_EXPLICIT, TENSORRT_TYPES
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the axis of the weight's scales."""
    return "its weight has a scale for each input" if site.operands[1].by_input else None


RULE = LintRule(
    name="weight-axis",
    effect="stays float",
    operations=("linear",),
    reason="The scales can be moved behind an integer product only if they do not vary along the axis that "
    "it sums over.",
    fix="Quantize per output: axis 0 of a weight that is stored (outputs, inputs), axis 1 of one that is "
    "transposed.",
    documents=(TENSORRT_TYPES, TENSORRT_EXPLICIT),
    check=check,
)
