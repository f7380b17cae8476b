"""OpenVINO: attention's matmuls take signed operands."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import OPENVINO_TRANSFORMATIONS
from qdqpatch.lint.sites import Site, listed, operand_names


def check(site: Site) -> str | None:
    """Look at the zero points."""
    wrong = [
        f"zero point {operand.zero_point} for its {name}"
        for name, operand in zip(operand_names(site), site.operands, strict=True)
        if operand.dtype and operand.zero_point
    ]
    return listed(wrong) or None if site.is_int8 else None


RULE = LintRule(
    name="shifted-attention",
    effect="stays float",
    operations=("query x key", "probabilities x value"),
    reason="OpenVINO moves dequantization behind a matmul of two computed tensors only if their zero points "
    "are 0. Measured on the CPU: int8 with zero point 0, bf16 with uint8 and zero point 128.",
    fix="Quantize to int8 with zero point 0: qdqpatch export --target openvino.",
    documents=(OPENVINO_TRANSFORMATIONS,),
    check=check,
)
