"""What quantizers are called: QDQBERT's names, which checkpoints keep."""

from __future__ import annotations

import re

INPUT = "_input_quantizer"
"""Of what a Linear reads."""

WEIGHT = "_weight_quantizer"
"""Of the weight of a Linear or an Embedding."""

OUTPUT = "_output_quantizer"
"""Of what a Linear computes, before its bias; most have none."""

INPUT_SCALE = "_input_scale"
"""Of what a Linear multiplies the channels of its input by, before the quantizer; most have none."""

FACTORS = "input_scale_"
"""What the names of these factors begin with in an exported graph."""

ZERO_POINT = "_zero_point"
"""Of a quantizer, the level of 0 where its range does not lie around zero."""


def operand(letters: str) -> str:
    """Return the name for an operand of a matmul between two computed tensors."""
    return f"matmul_{letters}_input_quantizer"


def letters_of(path: str) -> str | None:
    """Return which operand of a matmul a quantizer is for, by its path; None if it is no such quantizer."""
    found = re.fullmatch(operand("(.+)"), path.rpartition(".")[2])
    return None if found is None else found[1]


MATMUL = {letter: operand(letter) for letter in "qkva"}
"""Of the operands of attention's two matmuls: query, key, value, and the probabilities (a)."""

LOCAL = "add_local_input_quantizer"
"""Of what a block adds to its input."""

RESIDUAL = "add_residual_input_quantizer"
"""Of the input that a block adds what it computed to."""


def is_weight(path: str) -> bool:
    """Whether a path is that of a weight's quantizer."""
    return path.rpartition(".")[2] == WEIGHT
