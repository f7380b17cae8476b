"""Smooth what Linears read: each channel is divided by a factor, and the weight's column multiplied.

As in SmoothQuant (Xiao et al., arXiv 2211.10438): s = amax(x)^alpha / amax(w)^(1 - alpha) for each channel.
In a pre-LN model a LayerNorm could take the factors, but not in a post-LN one such as BERT, where the
residual add reads its output too, and nothing could after GELU. So the Linear multiplies its input itself
(`QuantLinear`), which costs an engine one product by a constant a channel, of one tensor for all Linears that
read it. The float function stays but for fp32's rounding; with factors that are powers of two it stays to the
last bit, but then channels differ by up to a factor of two, which costs about a quarter more error.

No channel is magnified: one that was quiet on this data need not be so on other texts. In a model that only
saw statements, a feature of GELU that answers to a question mark looks empty; magnified eight times, it is
clipped at the first question. The other half of the channels are as far apart as the formula says.

What reads the context of an attention whose product is quantized is left as it is: between the two the
factors keep TensorRT from making one kernel of the attention, and gain nothing that would show there.

What alpha serves best differs from Linear to Linear (from 0.3 to 1 in one model), so several are tried on
data that was held back. A factor moves error from inputs to weights; the Linear's output has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.channels import Channels, collect_channels
from qdqpatch.calibration.forgetting import check_forgettable, forget_ranges
from qdqpatch.calibration.observing import Observer, feed_watched
from qdqpatch.calibration.selecting import check_quantized, plain_linears
from qdqpatch.calibration.smoothing import around_one, powers_of_two
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.errors import UnsupportedModelError
from qdqpatch.nn.fake_quantize import absolute_max
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import letters_of
from qdqpatch.nn.quantizer import TensorQuantizer

Model = TypeVar("Model", bound=PreTrainedModel)

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The values of SmoothQuant's alpha that are tried."""

OF_CONTEXT = ("v", "a")
"""The operands of the product that makes an attention's context."""

WORTH = 0.9
"""Inputs are multiplied where the squared error falls below this share of what it is without."""


def smooth_inputs(
    model: Model,
    batches: Iterable[Mapping[str, Any]],
    padding_aware: bool = True,
    exact: bool = False,
) -> Model:
    """Multiply the channels that quantized Linears read, so that none of them is an outlier, in place.

    The float model runs once on the batches and computes the same afterwards, but for fp32's rounding. One
    batch in eight is held back, as by the method `"auto"`, to choose by how much each input is smoothed, if
    at all. Calibration must follow: ranges that no longer fit are dropped, and a quantizer without one
    computes it from each tensor. `qdqpatch.dequantize` gives the weights back, with the same rounding.

    Args:
        model: A quantized model, calibrated or not.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        padding_aware: Whether positions that the attention mask hides are left out.
        exact: Whether to multiply by powers of two alone, so that neither the float function nor the weights
            that `qdqpatch.dequantize` gives back change in any bit.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is no Linear to smooth.
        ConfigError: If a range to drop is learned.
        CalibrationError: If there is no batch, or a Linear saw no data, NaN or infinity.

    Whatever is raised, the model is as it was.
    """
    linears = linears_to_smooth(model)
    held_back: list[Mapping[str, Any]] = []
    with _after_attention(model) as found:
        channels = collect_channels(model, linears, as_tensors(batches), padding_aware, True, held_back)
    left = distributed.found_by_any(found, list(linears), model.device)
    linears = {path: linear for path, linear in linears.items() if path not in left}
    channels = {path: channels[path] for path in linears}
    groups = _groups(linears, channels, powers_of_two if exact else around_one)
    observers = {
        path: _Errors(group, linears[path], model.device) for group in groups for path in group.paths
    }
    feed_watched(model, linears, observers, held_back, padding_aware, inputs=True)
    errors = distributed.sum_over_processes(
        {path: observer.errors for path, observer in observers.items()}, model.device
    )
    with restored_if_raised(model, changed_parameters(linears)):
        for group in groups:
            factors = group.best(sum((errors[path] for path in group.paths), torch.zeros(())))
            for path in group.paths:
                linears[path].scale_input(factors)
        forget_ranges(model, _stale(linears))
    return model


@contextmanager
def _after_attention(model: nn.Module) -> Iterator[set[str]]:
    """Collect, as the model runs, the paths of Linears that run next after a quantized context."""
    found: set[str] = set()
    has_run = False

    def product(*_: Any) -> None:
        nonlocal has_run
        has_run = True

    def linear(path: str, *_: Any) -> None:
        nonlocal has_run
        if has_run:
            found.add(path)
        has_run = False

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(partial(linear, path)).remove)
            elif isinstance(module, TensorQuantizer) and module.is_enabled and letters_of(path) in OF_CONTEXT:
                stack.callback(module.register_forward_pre_hook(product).remove)
        yield found


def linears_to_smooth(model: nn.Module) -> dict[str, QuantLinear]:
    """Return the Linears that `smooth_inputs` may change, by path.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is none.
        ConfigError: If a range that must be dropped is learned.
    """
    check_quantized(model)
    linears = _plain_linears(model)
    if not linears:
        raise UnsupportedModelError(
            f"There is no input to smooth in {type(model).__name__}: no plain Linear has both quantizers on "
            "with ranges that are not fixed, and one range for its input."
        )
    check_forgettable(model, _stale(linears), "smooth")
    return linears


def can_smooth_inputs(model: nn.Module) -> bool:
    """Return whether there is a Linear that `smooth_inputs` may change."""
    return bool(_plain_linears(model))


def _plain_linears(model: nn.Module) -> dict[str, QuantLinear]:
    return {path: linear for path, linear in plain_linears(model).items() if _is_plain(linear)}


def changed_parameters(linears: Mapping[str, QuantLinear]) -> list[nn.Parameter]:
    """Return what smoothing the inputs of these Linears changes."""
    return [linear.weight for linear in linears.values()]


def _is_plain(linear: QuantLinear) -> bool:
    quantizers = (linear._input_quantizer, linear._weight_quantizer)
    return quantizers[0].axis is None and all(
        quantizer.is_enabled and not quantizer.is_fixed for quantizer in quantizers
    )


def _stale(linears: Mapping[str, QuantLinear]) -> list[TensorQuantizer]:
    """Return the quantizers whose ranges no longer fit afterwards."""
    return [
        quantizer
        for linear in linears.values()
        for quantizer in (linear._input_quantizer, linear._weight_quantizer)
    ]


@dataclass(frozen=True, eq=False)
class _Group:
    """The Linears that read one tensor.

    Attributes:
        paths: Theirs.
        ends: The lowest and the highest value of each channel of the tensor, fp32, shape `(2, channels)`.
        candidates: What its channels can be multiplied by, in the same shape; the first is 1 throughout.
    """

    paths: tuple[str, ...]
    ends: Tensor
    candidates: Sequence[Tensor]

    def best(self, errors: Tensor) -> Tensor | None:
        """Return the candidate with the least error, of shape `(candidates,)`; None to leave the input."""
        best = int(errors.argmin())
        return self.candidates[best] if bool(errors[best] < WORTH * errors[0]) else None


def _groups(
    linears: Mapping[str, QuantLinear],
    channels: Mapping[str, Channels],
    rounded: Callable[[Tensor], Tensor],
) -> list[_Group]:
    """Return the Linears by what they read: the same tensors have the same channels to the last bit."""
    readers: dict[tuple[bytes, ...], list[str]] = {}
    for path, seen in channels.items():
        readers.setdefault(seen.key, []).append(path)
    groups = []
    for paths in readers.values():
        weights = torch.stack([linears[path].float_weight.float().abs().amax(0) for path in paths]).amax(0)
        seen = channels[paths[0]]
        ends = torch.stack([seen.low, seen.high]).float().to(weights.device)
        amax = ends.abs().amax(0)
        candidates = [torch.ones_like(amax)]
        candidates += [rounded(weights ** (1 - alpha) / amax**alpha).clamp(max=1) for alpha in STRENGTHS]
        groups.append(_Group(tuple(paths), ends, candidates))
    return groups


class _Errors(Observer):
    """Adds up what quantizing makes a Linear's output differ, for each candidate of its group.

    Squared, and relative to the output's own square plus the mean of all: a token with large outputs counts
    for no more than another, because a LayerNorm or softmax follows, and one with small ones for no more
    either.

    Attributes:
        errors: Float64, shape `(candidates,)`.
    """

    def __init__(self, group: _Group, linear: QuantLinear, device: torch.device) -> None:
        super().__init__("", linear._input_quantizer, device)
        self._group, self._linear = group, linear
        self.errors = torch.zeros(len(group.candidates), dtype=torch.float64, device=device)

    def collect(self, inputs: Tensor) -> None:
        """Take an input of shape `(batch, positions, in_features)` into account."""
        self.was_reached = True
        values = self.batch.data(inputs).flatten(0, -2).float()
        weight = self._linear.float_weight.float()
        expected = values @ weight.T
        norm = expected.square().sum(-1)
        norm = (norm + norm.mean()).clamp(min=torch.finfo(norm.dtype).tiny)
        for place, factors in enumerate(self._group.candidates):
            found = self._quantized(values * factors, weight / factors, self._group.ends * factors)
            self.errors[place] += ((found - expected).square().sum(-1) / norm).sum()

    def _quantized(self, inputs: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """Return the output with inputs quantized to the range of their channels, and a weight to its own."""
        quantizer, of_inputs = self._linear._weight_quantizer, self._linear._input_quantizer
        weight = quantizer.quantized(weight, absolute_max(weight, quantizer.axis))
        interval = torch.stack([ends[0].amin(), ends[1].amax()])
        if of_inputs.is_symmetric:
            interval = interval.abs().amax()
        return of_inputs.quantized(inputs, interval) @ weight.T
