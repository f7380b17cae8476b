"""TensorRT: a bias is float."""

from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.rules.documents import TENSORRT_OPERATORS
from qdqpatch.lint.sites import Site


def check(site: Site) -> str | None:
    """Look at the type that the bias is stored in."""
    refused = site.bias not in (None, "int8", "float8e4m3fn")
    return f"its bias is {site.bias} before DequantizeLinear" if refused else None


RULE = LintRule(
    name="integer-bias",
    effect="refused",
    operations=("linear",),
    reason="TensorRT dequantizes int8, int4, float8 and float4, not the int32 that quantize_static of ONNX "
    "Runtime stores a bias in.",
    fix='Leave the bias float: extra_options={"QuantizeBias": False}, or qdqpatch export --target tensorrt.',
    documents=(TENSORRT_OPERATORS,),
    check=check,
)
