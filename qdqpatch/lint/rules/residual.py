"""TensorRT: both sides of a residual add are quantized."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_RESIDUAL
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Count the operands that stay float."""
    floats = sum(operand.dtype is None for operand in site.operands)
    return f"no Q/DQ before {'either' if floats == 2 else 'one'} of its operands" if floats else None


RULE = LintRule(
    name="residual",
    effect="stays float",
    operations=("residual add",),
    reason="TensorRT takes the add into the matmul before it if both of its inputs are integers. Otherwise "
    "the tensors between the layers stay float, and int8 was slower than fp16.",
    fix="Quantize both inputs of the add: the qdqbert preset of qdqpatch does.",
    documents=(TENSORRT_RESIDUAL,),
    check=check,
)
