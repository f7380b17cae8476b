"""Refine ranges by reconstructing each layer's output: all of them together, not one operation at a time.

A search chooses each range as if all others were perfect. Here they move together, down the gradient of the
error that the quantized model makes in the output of every layer, with what earlier layers got wrong
included: the gradient of a range is that of LSQ (Esser et al., arXiv 1902.08153), the goal that of BRECQ
(Li et al., arXiv 2102.05426), for all layers at once. Weights stay, so the float function does too; labels
are not needed.

What moves is the logarithm of each range, because ranges of one model differ by factors of a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.observing import HELD_BACK, no_batch, observing
from qdqpatch.calibration.reconstruction import Reconstruction, quantized_layers
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.errors import CalibrationError, ConfigError
from qdqpatch.nn.learned import LSQQuantizer
from qdqpatch.nn.names import is_weight
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import check_have_ranges, enabled_quantizers

Model = TypeVar("Model", bound=PreTrainedModel)
Batch = Mapping[str, Any]
Step = Callable[[int, int], None]

RATE = 0.05
"""The first step of each range's logarithm; the steps fall as a cosine."""


def refine_ranges(
    model: Model,
    batches: Iterable[Batch],
    epochs: int = 2,
    padding_aware: bool = True,
    step: Step = lambda done, total: None,
) -> Model:
    """Let the ranges of activations learn to reproduce what the float model's layers return, in place.

    Every batch runs `epochs` times through the float model, the quantized one, and back: with the default
    about as long as ten forward passes. One batch in eight is held back, as by the method `"auto"`: if the
    error of the layers' outputs is not smaller there at the end, the ranges stay what they were.

    Args:
        model: A quantized and calibrated model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device. All are
            kept in memory. Under `torch.distributed` each process learns from its own, and all get the mean.
        epochs: How often the batches are gone through.
        padding_aware: Whether positions that the attention mask hides are left out.
        step: Called after each step with how many are done, and of how many.

    Returns:
        The same model.

    Raises:
        ConfigError: If the number of epochs is not a positive integer, or no layer is quantized.
        NotQuantizedError: If the model has no enabled quantizer.
        CalibrationError: If there is no batch, a quantizer has no range, or an output is NaN or infinite.

    Whatever is raised, the model is as it was.
    """
    check_epochs(epochs)
    check_can_refine(model)
    check_have_ranges(enabled_quantizers(model))
    quantizers = list(learnable(model).values())
    before = torch.stack([quantizer._amax.detach().clone() for quantizer in quantizers])
    reconstruction = Reconstruction(model, quantized_layers(model), padding_aware)
    with restored_if_raised(model, ()), observing(model, {}):
        given = distributed.together(lambda: list[Batch](as_tensors(batches, model)), model.device)
        learned, held_back = split(given)
        moved = _mean_moved(reconstruction, quantizers, learned, epochs, step)
        refined = before * moved.exp()
        errors = []
        for ranges in (before, refined):
            _load(quantizers, ranges)
            errors.append(float(distributed.total(lambda: reconstruction.error(held_back), model.device)))
        _load(quantizers, refined if errors[1] < errors[0] else before)
    return model


def can_refine(model: nn.Module) -> bool:
    """Return whether a model has, or will have, ranges for `refine_ranges`, and layers to judge them by."""
    return bool(learnable(model)) and bool(quantized_layers(model))


def check_can_refine(model: nn.Module) -> None:
    """Raise a `ConfigError` if there is nothing to refine."""
    if not can_refine(model):
        raise ConfigError(f"{type(model).__name__} has no layer with a range to refine.")


def check_epochs(epochs: object, name: str = "epochs") -> None:
    """Raise a `ConfigError` if a number of epochs is none."""
    if type(epochs) is not int or epochs < 1:
        raise ConfigError(f"{name} must be a positive integer, not {epochs!r}.")


def split(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Return the batches to learn from and those to judge by, as the method `"auto"` holds them back."""
    learned: list[Batch] = []
    held_back: list[Batch] = []
    for place, batch in enumerate(batches, start=1):
        (held_back if place % HELD_BACK == 2 else learned).append(batch)
    return learned, held_back if len(batches) > 1 else batches


def _mean_moved(
    reconstruction: Reconstruction,
    quantizers: Sequence[TensorQuantizer],
    batches: list[Batch],
    epochs: int,
    step: Step,
) -> Tensor:
    """Let each process learn, and return the mean of what is to be added to the logarithm of each range.

    Processes count by their batches.
    """
    model = reconstruction.model

    def learn() -> Tensor:
        if not batches:
            return torch.zeros(2, len(quantizers), device=model.device)
        moved = _learn(reconstruction, quantizers, batches, epochs, step)
        return torch.stack([moved, torch.ones_like(moved)]) * len(batches)

    moved, count = distributed.total(learn, model.device)
    if not bool(count.all()):
        raise no_batch()
    mean: Tensor = moved / count
    return mean


def _learn(
    reconstruction: Reconstruction,
    quantizers: Sequence[TensorQuantizer],
    batches: list[Batch],
    epochs: int,
    step: Step,
) -> Tensor:
    """Return what is to be added to the logarithm of each range, fp32, shape `(quantizers,)`."""
    start = torch.stack([quantizer._amax.detach().clone() for quantizer in quantizers])
    with torch.inference_mode(False):
        moved = torch.zeros_like(start)
    optimizer = torch.optim.Adam([moved], lr=RATE)
    steps = epochs * len(batches)
    order = torch.Generator().manual_seed(0)
    places = [
        place for _ in range(epochs) for place in torch.randperm(len(batches), generator=order).tolist()
    ]
    with (
        torch.inference_mode(False),
        learning(reconstruction.model, quantizers),
        torch.enable_grad(),
    ):
        for done, place in enumerate(places):
            loss = reconstruction.loss(batches[place])
            if not bool(loss.isfinite()):
                raise CalibrationError(
                    "A layer's output is NaN or infinite, so the ranges cannot be refined. Check weights, "
                    "inputs and ranges."
                )
            loss.backward()
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * done / steps)) / 2
            moved.grad = torch.stack([gradient_of(quantizer) for quantizer in quantizers])
            optimizer.step()
            with torch.no_grad():
                for quantizer, amax in zip(quantizers, start * moved.exp(), strict=True):
                    quantizer._amax.copy_(amax)
                    quantizer._amax.grad = None
            step(done + 1, steps)
    return moved


def gradient_of(quantizer: TensorQuantizer) -> Tensor:
    """Return the gradient of the logarithm of a range; 0 of one that nothing reached."""
    amax, gradient = quantizer._amax.detach(), quantizer._amax.grad
    return torch.zeros_like(amax) if gradient is None else gradient * amax


@contextmanager
def learning(model: nn.Module, quantizers: Sequence[TensorQuantizer]) -> Iterator[None]:
    """Make the ranges the only parameters that have a gradient, and put everything back."""
    parameters = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    classes = [(type(quantizer), quantizer.is_learned) for quantizer in quantizers]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for quantizer in quantizers:
            quantizer.__class__ = LSQQuantizer
            quantizer.learn_range()  # one that is a Parameter already stays the same
            quantizer._amax.requires_grad_(True)
            quantizer._amax.grad = None
        yield
    finally:
        for quantizer, (kind, was_learned) in zip(quantizers, classes, strict=True):
            quantizer.learn_range(was_learned)
            quantizer.__class__ = kind
        for parameter, (wanted, gradient) in parameters.items():
            parameter.requires_grad_(wanted)
            parameter.grad = gradient


def learnable(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the quantizers of activations with one range for the whole tensor that may move, by path."""
    return {
        path: quantizer
        for path, quantizer in enabled_quantizers(model).items()
        if not is_weight(path)
        and not quantizer.is_fixed
        and (quantizer.axis is None if quantizer.amax is None else quantizer.amax.dim() == 0)
    }


def _load(quantizers: Iterable[TensorQuantizer], ranges: Tensor) -> None:
    for quantizer, amax in zip(quantizers, ranges, strict=True):
        quantizer.load_range(amax.clone())
