"""Every engine: the types that its kernels multiply."""

from __future__ import annotations

from dataclasses import dataclass

from qdqpatch.lint.rules import documents
from qdqpatch.lint.rules.base import LintRule
from qdqpatch.lint.sites import INT8, Operation, Site, listed, operand_names

MATMULS: tuple[Operation, ...] = ("linear", "query x key", "probabilities x value")


@dataclass(frozen=True)
class Types:
    """What an engine multiplies with each other.

    Attributes:
        operands: Types that computed operands may have.
        weights: Types that a weight may have.
        stored: Types that a weight may be stored in, to be multiplied in another.
        mixed: Whether the two operands may be of different types.
    """

    operands: tuple[str, ...]
    weights: tuple[str, ...]
    stored: tuple[str, ...] = ()
    mixed: bool = True

    def check(self, site: Site) -> str | None:
        """Name the operands of other types; float ones are no matter of types."""
        found, wrong = set(), []
        for name, operand in zip(operand_names(site), site.operands, strict=True):
            if operand.dtype is None or (operand.constant and operand.dtype in self.stored):
                continue
            found.add(operand.dtype)
            if operand.dtype not in (self.weights if operand.constant else self.operands):
                wrong.append(f"{operand.dtype} for its {name}")
        if not wrong and len(found) > 1 and not self.mixed and site.operation in MATMULS:
            return f"{listed(sorted(found))} in one product"
        return listed(wrong) or None


ONNXRUNTIME = LintRule(
    name="operand-type",
    effect="stays float",
    operations=MATMULS,
    reason="The runtime's integer kernels on the CPU multiply integers of 8 bits. Others are dequantized at "
    "every run: seen of 16-bit activations, weights of 4 bits and float8 in ONNX Runtime 1.32.",
    fix="Quantize inputs and weights to 8 bits: qdqpatch export --target onnxruntime.",
    documents=(documents.ORT_SELECTORS, documents.ORT_QUANTIZATION),
    check=Types(INT8, INT8).check,
)

OPENVINO = LintRule(
    name="operand-type",
    effect="stays float",
    operations=MATMULS,
    reason="OpenVINO's integer kernels on the CPU multiply inputs of 8 bits and weights of int8. A weight of "
    "4 bits or uint8, or one of int8 behind an input that is not of 8 bits, is only stored so and multiplied "
    "in float; float8 and 16-bit integers are computed in float (seen in OpenVINO 2026.4).",
    fix="Quantize inputs to 8 bits and weights to int8: qdqpatch export --target openvino.",
    documents=(documents.OPENVINO_LOW_PRECISION, documents.OPENVINO_TRANSFORMATIONS),
    check=Types(INT8, ("int8",)).check,
)

_TENSORRT = ("int8", "float8e4m3fn", "float4e2m1")

TENSORRT = LintRule(
    name="operand-type",
    effect="refused",
    operations=(*MATMULS, "residual add"),
    reason="TensorRT has int8 and float8e4m3fn (from compute capability 8.9) for both operands, which have "
    "to be of one type, float4e2m1 (from 10.0), and int4 for weights. Its parser refuses integers of 16 "
    "bits, float8e5m2, uint4 and weights of uint8; activations of uint8 it reads as int8, which loses the "
    "upper half of the levels (seen in TensorRT for RTX 1.7).",
    fix="Quantize to int8 with zero point 0: qdqpatch export --target tensorrt.",
    documents=(documents.TENSORRT_TYPES, documents.TENSORRT_OPERATORS),
    check=Types(_TENSORRT, _TENSORRT, stored=("int4",), mixed=False).check,
)
