"""OpenVINO: attention's matmuls take operands whose levels lie around 0; the left one's may begin there."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import OPENVINO_TRANSFORMATIONS
from qdqpatch.lint.sites import Site, listed, operand_names

LOWEST = {"int8": -128, "uint8": 0}
"""The zero points of levels from 0 up."""


def check(site: Site) -> str | None:
    """Look at the zero points."""
    left = site.operands[0]
    wrong = [
        f"zero point {operand.zero_point} for its {name}"
        for name, operand in zip(operand_names(site), site.operands, strict=True)
        if operand.dtype
        and operand.zero_point
        and not (operand is left and operand.zero_point == LOWEST.get(operand.dtype))
    ]
    return listed(wrong) or None if site.is_int8 else None


RULE = LintRule(
    name="shifted-attention",
    effect="stays float",
    operations=("query x key", "probabilities x value"),
    reason="OpenVINO moves dequantization behind a matmul of two computed tensors only if their zero points "
    "are 0, or the left one's levels are those from 0 up. Measured on the CPU: int8 with zero point 0, bf16 "
    "with uint8 and zero point 128.",
    fix="Quantize to int8 with zero point 0: qdqpatch export --target openvino.",
    documents=(OPENVINO_TRANSFORMATIONS,),
    check=check,
)
