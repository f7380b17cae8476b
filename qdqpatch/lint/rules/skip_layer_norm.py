"""ONNX Runtime on the CPU: Add and LayerNormalization are slower as one operator."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_OPTIMIZATIONS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the operator that adds."""
    if site.op_type == "SkipLayerNormalization":
        return "it is SkipLayerNormalization"
    return "Add before LayerNormalization" if site.op_type == "Add" else None


RULE = LintRule(
    name="skip-layer-norm",
    effect="slower",
    operations=("residual add",),
    reason="Where it knows the shapes, the runtime joins both into SkipLayerNormalization, which was "
    "measured to be slower on the CPU than the two apart.",
    fix="Write Sum instead of Add, which is not joined: qdqpatch export --target onnxruntime.",
    documents=(ORT_OPTIMIZATIONS,),
    check=check,
)
