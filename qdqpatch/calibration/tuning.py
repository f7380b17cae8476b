"""Tune ranges, biases and norms end to end: by what the model returns, not by what its layers return.

`refine_ranges` keeps every token of every layer alike. What a model is for is less: the direction of a text's
embedding, in which the errors of single tokens average out, or the order of a few logits. What is left of the
error there is systematic, and a bias or a norm's weight can take it back. So these learn together with the
ranges, down the gradient of the divergence from the float model's outputs, without labels; matrices stay,
and so does every integer of a weight. So do the second phase of EfficientQAT (Chen et al., arXiv 2407.11062),
which trains the steps alone, and Norm Tweaking (Li et al., arXiv 2309.02784).

There are enough biases to learn a few dozen texts by heart: give several hundred.
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
from qdqpatch.calibration.known_outputs import known_outputs
from qdqpatch.calibration.observing import no_batch, observing, on_device
from qdqpatch.calibration.reconstruction import quantized_layers, quantizing
from qdqpatch.calibration.refining import (
    check_can_refine,
    check_epochs,
    gradient_of,
    learnable,
    learning,
    split,
)
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.pooling import Pooling, SentenceHead
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import check_have_ranges, enabled_quantizers
from qdqpatch.tasks.head import classifier_of, divergence, meaning_of

Model = TypeVar("Model", bound=PreTrainedModel)
Batch = Mapping[str, Any]
Step = Callable[[int, int], None]

RANGE_RATE = 0.005
"""The first step of each range's logarithm; the steps fall as a cosine."""

RATE = 0.001
"""The same of biases and of norms."""

BETAS = (0.9, 0.99)


def tune(
    model: Model,
    batches: Iterable[Batch],
    epochs: int = 3,
    step: Step = lambda done, total: None,
    head: SentenceHead | None = None,
) -> Model:
    """Let ranges, biases and norms learn to give the outputs of the float model, in place.

    Every batch runs `epochs` times through the float model, the quantized one, and back. One batch in eight
    is held back, as by the method `"auto"`: if the outputs are not closer there at the end, nothing changes.
    The float model changes with its biases and norms, as by `correct_biases`: tune last.

    Args:
        model: A quantized and calibrated model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device. All are
            kept in memory. Under `torch.distributed` each process learns from its own, and all get the mean.
        epochs: How often the batches are gone through.
        step: Called after each step with how many are done, and of how many.
        head: What makes embeddings of the last hidden states of a model without a head; None for their mean.

    Returns:
        The same model.

    Raises:
        ConfigError: If the number of epochs is not a positive integer, or no layer is quantized.
        NotQuantizedError: If the model has no enabled quantizer.
        CalibrationError: If there is no batch, a quantizer has no range, the model has no output that is
            known here, or one is NaN or infinite.

    Whatever is raised, the model is as it was.
    """
    check_epochs(epochs)
    check_can_refine(model)
    check_have_ranges(enabled_quantizers(model))
    quantizers, parameters = list(learnable(model).values()), tuned_parameters(model)
    with restored_if_raised(model, parameters), observing(model, {}):
        given = distributed.together(lambda: list[Batch](as_tensors(batches, model)), model.device)
        learned, held_back = split(given)
        state = _State(quantizers, parameters)
        loss = _Divergence(model, head or SentenceHead(Pooling()), state)
        errors = [distributed.total(lambda: loss.of(held_back), model.device)]
        change = _mean_change(loss, state, learned, epochs, step)
        state.load(change)
        errors.append(distributed.total(lambda: loss.of(held_back), model.device))
        if not bool(errors[1] < errors[0]):
            state.load(torch.zeros_like(change))
    return model


def tuned_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the biases and the norms' weights of the layers that hold quantizers."""
    found = (
        parameter
        for layer in quantized_layers(model)
        for module in layer.modules()
        if not isinstance(module, TensorQuantizer)
        for parameter in module._parameters.values()
        if parameter is not None and parameter.dim() == 1
    )
    return list(dict.fromkeys(found))


class _State:
    """What is tuned, as it was, and as one vector of changes.

    Args:
        quantizers: Those whose ranges change.
        parameters: The biases and norms.
    """

    def __init__(self, quantizers: Sequence[TensorQuantizer], parameters: Sequence[nn.Parameter]) -> None:
        self.quantizers, self.parameters = quantizers, parameters
        self.ranges = torch.stack([quantizer._amax.detach().clone() for quantizer in quantizers])
        self._values = [parameter.detach().clone() for parameter in parameters]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Let the parameters be what they were inside the block: the float model's."""
        now = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self._values)
        try:
            yield
        finally:
            self._set(now)

    def _set(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def changes(self, moved: Tensor) -> Tensor:
        """Return how the parameters differ from what they were, after `moved` of the ranges' logarithms."""
        differences = [
            (now.detach() - before).float().flatten()
            for now, before in zip(self.parameters, self._values, strict=True)
        ]
        return torch.cat([moved, *differences])

    def load(self, change: Tensor) -> None:
        """Make everything what it was, plus a change."""
        count = len(self.quantizers)
        for quantizer, amax in zip(self.quantizers, self.ranges * change[:count].exp(), strict=True):
            quantizer.load_range(amax.clone())
        sizes = [value.numel() for value in self._values]
        parts = change[count:].split(sizes) if sizes else ()
        self._set(
            [
                before + part.view_as(before).to(before.dtype)
                for before, part in zip(self._values, parts, strict=True)
            ]
        )


class _Divergence:
    """Compares the outputs of the quantized model with those of the float one.

    Args:
        model: The model, with quantization switched off.
        head: What makes embeddings of the last hidden states.
        state: What is tuned; the float model has it as it was.
    """

    def __init__(self, model: PreTrainedModel, head: SentenceHead, state: _State) -> None:
        self.model = model
        self._head = head.to(model.device)
        self._state = state
        self._classifier = classifier_of(model)
        self._quantizers = list(enabled_quantizers(model).values())

    def loss(self, batch: Batch) -> Tensor:
        """Return how far the outputs are from the float ones, the mean over texts or tokens, 0-dim."""
        inputs = on_device(batch, self.model.device)
        with torch.no_grad(), self._state.as_before():
            expected = known_outputs(self.model, inputs)
        with quantizing(self._quantizers):
            found = known_outputs(self.model, inputs)
        mask = inputs.get("attention_mask")
        return torch.stack([self._between(name, expected[name], found[name], mask) for name in found]).sum()

    def of(self, batches: Iterable[Batch]) -> Tensor:
        """Return the sum of the losses."""
        with torch.no_grad():
            losses = [self.loss(batch) for batch in batches]
            return torch.stack(losses).sum() if losses else torch.zeros((), device=self.model.device)

    def _between(self, name: str, expected: Tensor, found: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or mask.shape != found.shape[:2]:  # of images, say, which have no padding
            mask = torch.ones(found.shape[:2], device=found.device)
        mask = mask.bool()
        meaning = meaning_of(name, found.shape[-1], self._classifier)
        expected, found = expected.float(), found.float()
        if meaning == "states":
            expected, found = self._head(expected, mask), self._head(found, mask)
        elif meaning == "positions":
            hidden = torch.finfo(torch.float32).min / 2
            expected, found = (value.masked_fill(~mask, hidden) for value in (expected, found))
        elif found.dim() == 3 and found.shape[:2] == mask.shape:
            expected, found = expected[mask], found[mask]
        return divergence(meaning, expected, found).mean()


def _mean_change(loss: _Divergence, state: _State, batches: list[Batch], epochs: int, step: Step) -> Tensor:
    """Let each process learn, and return the mean of the changes; processes count by their batches."""
    size = len(state.quantizers) + sum(parameter.numel() for parameter in state.parameters)

    def learn() -> Tensor:
        if not batches:
            return torch.zeros(size + 1, device=loss.model.device)
        change = _learn(loss, state, batches, epochs, step)
        return torch.cat([change, torch.ones_like(change[:1])]) * len(batches)

    *_, count = total = distributed.total(learn, loss.model.device)
    if not bool(count):
        raise no_batch()
    mean: Tensor = total[:-1] / count
    return mean


def _learn(loss: _Divergence, state: _State, batches: list[Batch], epochs: int, step: Step) -> Tensor:
    """Return what is to be added: to the logarithm of each range, then to the parameters."""
    with torch.inference_mode(False):
        moved = torch.zeros_like(state.ranges)
        # In fp16 a step would be lost, or be 0 / 0.
        steered = [parameter.detach().float() for parameter in state.parameters]
    groups = [
        {"params": [moved], "lr": RANGE_RATE, "first": RANGE_RATE},
        {"params": steered, "lr": RATE, "first": RATE},
    ]
    optimizer = torch.optim.Adam(groups, betas=BETAS)
    order = torch.Generator().manual_seed(0)
    places = [
        place for _ in range(epochs) for place in torch.randperm(len(batches), generator=order).tolist()
    ]
    with (
        torch.inference_mode(False),
        learning(loss.model, state.quantizers),
        torch.enable_grad(),
    ):
        for parameter in state.parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        for done, place in enumerate(places):
            value = loss.loss(batches[place])
            if not bool(value.isfinite()):
                raise CalibrationError(
                    "An output is NaN or infinite, so the model cannot be tuned. Check weights, inputs and "
                    "ranges."
                )
            value.backward()
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * (1 + math.cos(math.pi * done / len(places))) / 2
            moved.grad = torch.stack([gradient_of(quantizer) for quantizer in state.quantizers])
            for copy, parameter in zip(steered, state.parameters, strict=True):
                copy.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            optimizer.step()
            with torch.no_grad():
                for copy, parameter in zip(steered, state.parameters, strict=True):
                    parameter.copy_(copy)
                for quantizer, amax in zip(state.quantizers, state.ranges * moved.exp(), strict=True):
                    quantizer._amax.copy_(amax)
                    quantizer._amax.grad = None
            step(done + 1, len(places))
    return state.changes(moved)
