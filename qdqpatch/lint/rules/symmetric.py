"""TensorRT: zero is 0."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_OPERATORS, TENSORRT_TYPES
from qdqpatch.lint.sites import Site, listed, operand_names


def check(site: Site) -> str | None:
    """Look at the zero point of each operand."""
    wrong = [
        f"zero point {operand.zero_point} for its {name}"
        for name, operand in zip(operand_names(site), site.operands, strict=True)
        if operand.dtype and operand.zero_point
    ]
    return listed(wrong) or None


RULE = LintRule(
    name="symmetric",
    effect="refused",
    operations=("linear", "query x key", "probabilities x value", "residual add"),
    reason="TensorRT quantizes symmetrically: its parser refuses every zero point but 0.",
    fix="Quantize to int8 with zero point 0: qdqpatch export --target tensorrt.",
    documents=(TENSORRT_TYPES, TENSORRT_OPERATORS),
    check=check,
)
