"""OpenVINO: MatMulInteger is computed in float."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import OPENVINO_LOW_PRECISION
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the operator."""
    return "it is MatMulInteger" if site.op_type == "MatMulInteger" else None


RULE = LintRule(
    name="integer-operator",
    effect="stays float",
    operations=("linear", "query x key", "probabilities x value"),
    reason="OpenVINO computes in int8 what FakeQuantize stands before, which it makes of QuantizeLinear. "
    "DynamicQuantizeLinear and MatMulInteger it takes apart into float operators.",
    fix="Quantize with fixed ranges, as Q/DQ: qdqpatch convert --calib, then qdqpatch export --target "
    "openvino.",
    documents=(OPENVINO_LOW_PRECISION,),
    check=check,
)
