"""Which ranges training changes: those of activations by gradient, those of weights with the weights."""

from __future__ import annotations

from typing import TypeVar, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.choices import ActivationRanges, WeightRanges
from qdqpatch.errors import CalibrationError, ConfigError, no_range
from qdqpatch.nn.learned import (
    LearnedQuantizer,
    LSQQuantizer,
    PACTQuantizer,
    WeightTrackingQuantizer,
    learned_quantizers,
    update_ranges,
    weighted,
)
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.spelling import spelled

Model = TypeVar("Model", bound=PreTrainedModel)

ACTIVATIONS: dict[str, type[TensorQuantizer]] = {
    "frozen": TensorQuantizer,
    "lsq": LSQQuantizer,
    "clip": PACTQuantizer,
}
WEIGHTS: dict[str, type[TensorQuantizer]] = {"frozen": TensorQuantizer, "follow": WeightTrackingQuantizer}


def train_ranges(
    model: Model, activations: ActivationRanges = "lsq", weights: WeightRanges = "follow"
) -> Model:
    """Say what training does to the ranges of a calibrated model, in place.

    Without this call, and after `freeze_ranges`, all ranges stay as they are, as in QDQBERT. Those that the
    configuration fixes stay in any case.

    Args:
        model: A calibrated model.
        activations: `"lsq"` learns each range by the gradient of the rounding error, scaled by
            1/sqrt(N Q) for N elements of a sequence and highest level Q (learned step size quantization,
            arXiv 1902.08153). `"clip"` learns it by the gradient of what it clips (PACT, arXiv 1805.06085;
            `learn_amax` of pytorch-quantization). `"frozen"` leaves them.
        weights: `"follow"` takes the largest magnitudes of the weights as they are in each step;
            `"frozen"` leaves the ranges.

    Returns:
        The same model. The learned ranges are among its parameters; `parameter_groups` gives them a rate
        of their own.

    Raises:
        ConfigError: If there is no such choice, or a learned range is one per channel.
        NotQuantizedError: If the model has no enabled quantizer.
        CalibrationError: If a quantizer that is to learn or follow has no range to begin with.
    """
    for value, choices, name in (
        (activations, get_args(ActivationRanges), "activations"),
        (weights, get_args(WeightRanges), "weights"),
    ):
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    quantizers = enabled_quantizers(model)
    of_weights = {id(module._weight_quantizer) for module in weighted(model)}
    changes = [
        (path, quantizer, WEIGHTS[weights] if id(quantizer) in of_weights else ACTIVATIONS[activations])
        for path, quantizer in quantizers.items()
        if not quantizer.is_fixed
    ]
    for path, quantizer, cls in changes:
        if cls is TensorQuantizer:
            continue
        if quantizer.amax is None:
            raise CalibrationError(no_range([path]))
        if issubclass(cls, LearnedQuantizer) and quantizer.amax.dim() > 0:
            frozen = spelled("activations='frozen'", "--activation-ranges frozen")
            per_tensor = spelled("axis=None", f"--override '{path}=axis:none'")
            raise ConfigError(
                f"{path} has a range for each channel; those of activations are learned one per tensor. "
                f"Train with {frozen}, or quantize it with {per_tensor}."
            )
    for _, quantizer, cls in changes:
        _become(quantizer, cls)
    return model


def freeze_ranges(model: Model) -> Model:
    """Keep all ranges as they are from here on, in place; those of weights become the weights' own first.

    Learned ranges are no longer among the model's parameters: make the optimizer anew.

    Args:
        model: A quantized model.

    Returns:
        The same model, whose quantizers are all of the usual class.
    """
    update_ranges(model)
    for quantizer in model.modules():
        if isinstance(quantizer, TensorQuantizer):
            _become(quantizer, TensorQuantizer)
    return model


def _become(quantizer: TensorQuantizer, cls: type[TensorQuantizer]) -> None:
    quantizer.__class__ = cls
    quantizer.learn_range(issubclass(cls, LearnedQuantizer))


def learned_ranges(model: nn.Module) -> dict[str, Tensor]:
    """Return the ranges that are Parameters, by their names in the model."""
    return {
        f"{path}._amax": quantizer.get_parameter("_amax")
        for path, quantizer in learned_quantizers(model).items()
    }


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, range_lr: float | None = None
) -> list[dict[str, object]]:
    """Return what an optimizer takes: decayed weights, other parameters, and learned ranges.

    Biases, LayerNorms and ranges do not decay.

    Args:
        model: The model to train.
        lr: The learning rate.
        weight_decay: That of the matrices.
        range_lr: The rate of learned ranges. None for 127 times `lr`: a range is that many steps long,
            so that with an optimizer of Adam's kind the step size moves by `lr`, as in LSQ.
    """
    ranges = {id(parameter) for parameter in learned_ranges(model).values()}
    parameters = [
        parameter
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in ranges
    ]
    groups: list[dict[str, object]] = [
        {
            "params": [parameter for parameter in parameters if parameter.dim() > 1],
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.dim() <= 1],
            "lr": lr,
            "weight_decay": 0.0,
        },
    ]
    if ranges:
        rate = 127 * lr if range_lr is None else range_lr
        groups.append({"params": list(learned_ranges(model).values()), "lr": rate, "weight_decay": 0.0})
    return groups
