"""ONNX Runtime on x64: an operator that multiplies signed by signed."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_QUANTIZATION
from qdqpatch.lint.sites import Site, operand_names


def check(site: Site) -> str | None:
    """Look at the first operand of an operator that takes integers."""
    if site.takes_integers and site.operands[0].dtype == "int8":
        return f"{site.op_type} gets its {operand_names(site)[0]} as int8"
    return None


RULE = LintRule(
    name="signed-kernel",
    effect="slower",
    operations=("linear", "query x key", "probabilities x value"),
    reason="x64 has no fast kernel for signed times signed: it was measured at 1/50 of the speed of unsigned "
    "times signed.",
    fix="Quantize the first operand to uint8 with zero point 128, which is the same grid.",
    documents=(ORT_QUANTIZATION,),
    check=check,
)
