"""ONNX Runtime on x64 with VNNI: the second operand of attention's matmuls is faster signed."""

from collections.abc import Sequence

from qdqpatch.lint.rules import signed_input
from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import ORT_QUANTIZATION, ORT_S8_TO_U8
from qdqpatch.lint.sites import Operand, Site, operand_names


def is_for_vnni(sites: Sequence[Site]) -> bool:
    """Say whether a weight's products may saturate: none's do in a file for processors without VNNI."""
    weights = [site.operands[1] for site in sites if site.operation == "linear" and site.is_int8]
    return not weights or any(weight.dtype != "uint8" and not weight.fits_pairs for weight in weights)


def check(site: Site) -> str | None:
    """Look at the second operand of a matmul that the runtime can compute with integers."""
    second = site.operands[1]
    name = operand_names(site)[1]
    if not site.is_int8 or signed_input.check(site) is not None:
        return None
    if second.dtype == "uint8":
        return f"its {name} is uint8"
    if second.dtype == "int8" and not site.takes_integers and _is_made_unsigned(second):
        return f"its {name} is int8 by a Q/DQ pair, which the runtime makes uint8"
    return None


def _is_made_unsigned(operand: Operand) -> bool:
    """Say whether the runtime changes a signed pair: one that is alone, or one that it adds behind views."""
    return bool(operand.between) or (operand.readers == 1 and not operand.moved)


RULE = LintRule(
    name="unsigned-key-value",
    effect="slower",
    operations=("query x key", "probabilities x value"),
    reason="With VNNI the kernel for unsigned times signed was measured at twice the speed of unsigned times "
    "unsigned.",
    fix="Quantize key and value to int8 with zero point 0, and multiply by MatMulIntegerToFloat of "
    "com.microsoft, which takes uint8 and int8: qdqpatch export --target onnxruntime --vnni.",
    documents=(ORT_QUANTIZATION, ORT_S8_TO_U8),
    check=check,
    concerns=is_for_vnni,
)
