"""TensorRT: attention's scale comes before the first matmul."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_ATTENTION
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look between the matmul and softmax."""
    return "its scores are scaled after the matmul" if site.scaled_after else None


RULE = LintRule(
    name="scale-after-matmul",
    effect="slower",
    operations=("query x key",),
    reason="TensorRT documents that it fuses an attention whose query or key is multiplied by the scale "
    "before they are multiplied with each other. TensorRT for RTX 1.7 makes the same kernels either way.",
    fix="Multiply 1/sqrt(d) into the query projection or into a scale of Q/DQ: qdqpatch export --target "
    "tensorrt.",
    documents=(TENSORRT_ATTENTION,),
    check=check,
)
