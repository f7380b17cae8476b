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
    effect="slower",
    operations=("residual add",),
    reason="TensorRT computes the add together with the LayerNorm behind it. What is quantized that kernel "
    "reads as int8, a quarter or half of the bytes of a float; for TensorRT for RTX 1.7 that is seen in the "
    "kernels, and NVIDIA measured int8 without it to be slower than fp16.",
    fix="Quantize both inputs of the add: the qdqbert preset of qdqpatch does.",
    documents=(TENSORRT_RESIDUAL,),
    check=check,
)
