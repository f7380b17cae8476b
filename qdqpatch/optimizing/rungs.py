"""The steps of the ladder as data, the cheapest first; those of `ptq` are added up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.calibration.bias_correction import linears_to_correct
from qdqpatch.calibration.input_smoothing import linears_to_smooth
from qdqpatch.calibration.refining import check_can_refine
from qdqpatch.calibration.residual_smoothing import operands_to_smooth
from qdqpatch.calibration.shifting import shifts_to_make
from qdqpatch.calibration.smoothing import attentions_to_smooth
from qdqpatch.calibration.weight_rounding import linears_to_round
from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import ConfigError, NotQuantizedError, UnsupportedModelError
from qdqpatch.patching.quantize import quantize

Kind = Literal["ptq", "float units", "distillation"]


@dataclass(frozen=True)
class Rung:
    """A step of the ladder.

    Attributes:
        name: What the table calls it.
        passes: What it takes, in float passes over the calibration texts; the first guess, which is
            corrected by how long the rungs before took.
        kind: What does it: `ptq`, or one of the two that begin with the best model so far.
        switches: Arguments of `ptq` that it turns on, beside those of the rungs before that helped.
    """

    name: str
    passes: float
    kind: Kind = "ptq"
    switches: Mapping[str, Any] = field(default_factory=dict)


SMOOTHING = dict.fromkeys(("smooth", "shift", "smooth_inputs", "smooth_residuals"), True)

RUNGS = (
    Rung("ranges", 8),
    Rung("shift and smooth", 40, switches=SMOOTHING),
    Rung("round weights", 60, switches={"round_weights": True}),
    Rung("refine", 150, switches={"refine": 4, "correct_biases": True}),
    Rung("tune", 200, switches={"tune": 3}),
    Rung("units in float", 40, "float units"),
    Rung("distillation", 120, "distillation"),
)

CHECKS: dict[str, Callable[[nn.Module], object]] = {
    "smooth": attentions_to_smooth,
    "shift": shifts_to_make,
    "smooth_inputs": linears_to_smooth,
    "smooth_residuals": operands_to_smooth,
    "refine": check_can_refine,
    "tune": check_can_refine,
    "round_weights": linears_to_round,
    "correct_biases": linears_to_correct,
}
"""What raises where a model has nothing for a switch of `ptq`; a switch that is not here suits all."""


def possible(model: PreTrainedModel, config: QDQConfig, rungs: tuple[Rung, ...]) -> frozenset[str]:
    """Return the switches of the rungs that a float model has something for, quantized as configured.

    Raises:
        UnsupportedModelError: If it cannot be quantized so.
    """
    twin = quantize(copy.deepcopy(model), config)
    names = {name for rung in rungs for name in rung.switches}
    return frozenset(name for name in names if name not in CHECKS or _suits(CHECKS[name], twin))


def _suits(check: Callable[[nn.Module], object], model: PreTrainedModel) -> bool:
    try:
        check(model)
    except (ConfigError, NotQuantizedError, UnsupportedModelError):
        return False
    return True
