"""TensorRT: only operators of ONNX, and not those that take integers."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_OPERATORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the operator and its domain."""
    if site.domain:
        return f"{site.domain}.{site.op_type} is not an operator of ONNX"
    return f"{site.op_type} is not supported" if site.takes_integers else None


RULE = LintRule(
    name="unknown-operator",
    effect="refused",
    operations=("linear", "query x key", "probabilities x value", "residual add", "operator"),
    reason="The parser of TensorRT reads QuantizeLinear and DequantizeLinear around float operators; "
    "MatMulInteger, QLinearMatMul and the operators of com.microsoft it does not know.",
    fix="Export with Q/DQ around MatMul: qdqpatch export --target tensorrt.",
    documents=(TENSORRT_OPERATORS,),
    check=check,
)
