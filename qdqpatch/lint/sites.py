"""What a rule sees of an operation: plain data, read from the ONNX graph once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Operation = Literal["linear", "query x key", "probabilities x value", "residual add", "operator"]
"""What is computed: the names of `plan()`, and `operator` for one of a domain of its own."""


@dataclass(frozen=True)
class Operand:
    """An input of an operation, and how it is quantized.

    Attributes:
        dtype: The type of its levels, by ONNX's name in small letters; None for a float operand.
        constant: Whether it is a weight.
        zero_point: None where the file does not say.
        readers: So many operations read what the same QuantizeLinear gives.
        between: The operators from DequantizeLinear to the operation, in the order of the data.
        moved: The operators from QuantizeLinear to DequantizeLinear.
        stored: How the file holds a quantized weight.
        by_input: Whether a weight has a scale for each input, where outputs are meant to have them.
        half: Whether DequantizeLinear gives float16 or bfloat16.
        fits_pairs: Whether it is a weight of int8, read as such, whose products with uint8 never saturate.
    """

    dtype: str | None = None
    constant: bool = False
    zero_point: int | None = 0
    readers: int = 1
    between: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    stored: Literal["float", "integer"] = "integer"
    by_input: bool = False
    half: bool = False
    fits_pairs: bool = False


@dataclass(frozen=True)
class Site:
    """An operation of the encoder.

    Attributes:
        path: Its module where the graph has names that tell, else what it is and its number.
        operation: What is computed.
        op_type: The ONNX operator.
        domain: The operator's domain, "" for ONNX itself.
        operands: Two of them, in the operator's order.
        output_quantized: Whether the product itself goes to QuantizeLinear alone: for Gemm with its bias,
            else without.
        quantized_scores: Whether softmax reads the scores through Q/DQ.
        scaled_after: Whether the scores are multiplied by a constant before softmax.
        bias: The integer type of a Linear's bias, where DequantizeLinear stands behind that.
        node: The node's name; one without is called after its output, as TensorRT does.
        norm: The same of the LayerNorm behind a residual add.
        float_gemm: Whether it is Gemm with a float bias, or MatMul and Add of shapes that the file fixes,
            which ONNX Runtime makes Gemm of.
    """

    path: str
    operation: Operation
    op_type: str
    domain: str = ""
    operands: tuple[Operand, ...] = ()
    output_quantized: bool = False
    quantized_scores: bool = False
    scaled_after: bool = False
    bias: str | None = None
    float_gemm: bool = False
    node: str = ""
    norm: str = ""

    @property
    def takes_integers(self) -> bool:
        """Whether the operator itself multiplies integers, and no DequantizeLinear stands before it."""
        return self.op_type in INTEGER_OPERATORS

    @property
    def is_int8(self) -> bool:
        """Whether all operands are integers of 8 bits."""
        return all(operand.dtype in INT8 for operand in self.operands)


INT8 = ("int8", "uint8")
"""Integers of 8 bits."""

INTEGER_OPERATORS = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
)


def listed(names: Sequence[str]) -> str:
    """Write names as `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def operand_names(site: Site) -> tuple[str, str]:
    """Return what the two operands of an operation are called."""
    names: dict[Operation, tuple[str, str]] = {
        "linear": ("input", "weight"),
        "query x key": ("query", "key"),
        "probabilities x value": ("probabilities", "value"),
    }
    return names.get(site.operation, ("first operand", "second operand"))
