"""ONNX Runtime on x64: a signed input leaves its matmul float, if its Q/DQ pair is not the matmul's own."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_S8_TO_U8, ORT_SELECTORS
from qdqpatch.lint.sites import Site, listed, operand_names


def check(site: Site) -> str | None:
    """Look at the first operand: the second one may be signed."""
    first = site.operands[0]
    if site.takes_integers or site.float_gemm or not site.is_int8 or first.dtype != "int8":
        return None
    name = operand_names(site)[0]
    if first.readers > 1:
        return f"its {name} is int8, and {first.readers} operations read it"
    if first.moved:
        return f"its {name} is int8, and {listed(first.moved)} between its Q and DQ"
    return None


RULE = LintRule(
    name="signed-input",
    effect="stays float",
    operations=("linear", "query x key", "probabilities x value"),
    reason="The integer kernels of x64 take an unsigned input. The runtime turns a signed Q/DQ pair into an "
    "unsigned one only where DequantizeLinear follows at once and nothing else reads that QuantizeLinear. "
    "Otherwise the matmul stays float, and its weight is dequantized at every run.",
    fix="Make the input uint8 with zero point 128, which is the same grid: qdqpatch export --target "
    "onnxruntime. A Q/DQ pair for each matmul helps only where the pairs differ, for equal ones are merged.",
    documents=(ORT_S8_TO_U8, ORT_SELECTORS),
    check=check,
)
