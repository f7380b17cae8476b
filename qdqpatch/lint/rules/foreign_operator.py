"""OpenVINO: operators of ONNX Runtime's own are not promised to load."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import OPENVINO_OPERATORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the operator's domain."""
    return f"{site.domain}.{site.op_type} is not an operator of ONNX" if site.domain else None


RULE = LintRule(
    name="foreign-operator",
    effect="refused",
    operations=("linear", "query x key", "probabilities x value", "residual add", "operator"),
    reason="OpenVINO reads operators of ONNX. Of those of com.microsoft it knows some, which differ from "
    "version to version; it refuses a file with any other.",
    fix="Export with Q/DQ around MatMul: qdqpatch export --target openvino.",
    documents=(OPENVINO_OPERATORS,),
    check=check,
)
