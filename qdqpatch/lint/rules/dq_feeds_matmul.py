"""TensorRT: DequantizeLinear stands right before the attention matmul."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import MODELOPT_ATTENTION
from qdqpatch.lint.sites import Site, listed, operand_names


def check(site: Site) -> str | None:
    """Look between DequantizeLinear and each computed operand; TensorRT folds what follows a weight."""
    wrong = [
        f"{listed(operand.between)} between the Q/DQ of its {name} and the matmul"
        for name, operand in zip(operand_names(site), site.operands, strict=True)
        if operand.between and not operand.constant
    ]
    return listed(wrong) or None


RULE = LintRule(
    name="dq-feeds-matmul",
    effect="slower",
    operations=("linear", "query x key", "probabilities x value"),
    reason="TensorRT 10 looks for DequantizeLinear as the operand itself; with Transpose or Reshape in "
    "between it can miss the integer kernel, and fused attention. TensorRT for RTX 1.7 makes the same "
    "kernels either way.",
    fix="Move Transpose and Reshape before QuantizeLinear: qdqpatch export --target tensorrt.",
    documents=(MODELOPT_ATTENTION,),
    check=check,
)
