"""ONNX Runtime: a QuantizeLinear right behind a matmul makes it QLinearMatMul."""

from qdqpatch.lint.rules import half_precision, signed_input
from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_QUANTIZATION, ORT_SELECTORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look behind the operation."""
    if site.op_type in ("QLinearMatMul", "QGemm"):
        return f"{site.op_type} gives integers"
    is_float = signed_input.check(site) or half_precision.check(site)
    if site.is_int8 and not site.takes_integers and not is_float and site.output_quantized:
        return "QuantizeLinear alone reads its result"
    return None


RULE = LintRule(
    name="quantized-output",
    effect="slower",
    operations=("linear", "query x key", "probabilities x value"),
    reason="The runtime takes that QuantizeLinear, also from behind Reshape and Transpose, into "
    "QLinearMatMul, whose result then has to be dequantized again. MatMulIntegerToFloat gives the float at "
    "once.",
    fix="Quantize the inputs only; where the next operation needs its input quantized, write "
    "com.microsoft.MatMulIntegerToFloat: qdqpatch export --target onnxruntime.",
    documents=(ORT_SELECTORS, ORT_QUANTIZATION),
    check=check,
)
