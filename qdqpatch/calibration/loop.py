"""The calibration loop: feed data through the float model and set every quantizer's range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.calibration.running_max import RunningMax
from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError
from qdqpatch.linear import QuantEmbedding, QuantLinear
from qdqpatch.patch import named_quantizers
from qdqpatch.quantizer import TensorQuantizer

Model = TypeVar("Model", bound=PreTrainedModel)


def calibrate(model: Model, batches: Iterable[Mapping[str, Any]], method: Literal["max"] = "max") -> Model:
    """Set the range of every enabled quantizer from the tensors that the float model computes.

    The batches run through the model in eval mode with quantization switched off, as in the toolkit's
    own calibration. Weight quantizers need no data. Nothing is set until every range is known.

    Args:
        model: A quantized model.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        method: `"max"`: the largest magnitude seen.

    Returns:
        The same model.

    Raises:
        ConfigError: If there is no such method.
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If there is no batch, a quantizer saw no tensor, or one saw NaN or infinity.
            The model then has the ranges it had.
    """
    if method != "max":
        raise ConfigError(f'There is no calibration method {method!r}; there is "max".')
    quantizers = {path: each for path, each in named_quantizers(model) if not each._disabled}
    if not quantizers:
        raise NotQuantizedError("The model has no enabled quantizer: call qdqpatch.quantize(model) first.")
    collectors = {path: RunningMax(quantizer._axis) for path, quantizer in quantizers.items()}
    weights = _collect_weights(model, collectors)
    fed = {path: quantizers[path] for path in quantizers if path not in weights}
    with _collecting(model, fed, collectors), torch.no_grad():
        count = _feed(model, batches)
    ranges = {path: _checked(path, collectors[path], count) for path in quantizers}
    for path, quantizer in quantizers.items():
        quantizer.load_range(ranges[path])
    return model


def _collect_weights(model: PreTrainedModel, collectors: dict[str, RunningMax]) -> set[str]:
    """Show every weight to its collector and return the paths of the weight quantizers."""
    paths = set()
    for name, module in model.named_modules():
        path = f"{name}._weight_quantizer"
        if isinstance(module, (QuantLinear, QuantEmbedding)) and path in collectors:
            collectors[path].collect(module.weight)
            paths.add(path)
    return paths


def _feed(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for count, batch in enumerate(batches, start=1):
        if not isinstance(batch, Mapping):
            raise CalibrationError(
                f"Batch {count} is a {type(batch).__name__}; each must be a mapping of the model's keyword "
                "arguments, as a tokenizer returns it."
            )
        model(**{key: _moved(value, model.device) for key, value in batch.items()})
    return count


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _checked(path: str, collector: RunningMax, batches: int) -> Tensor:
    amax = collector.compute_amax()
    if amax is None and not batches:
        raise CalibrationError("There was no calibration batch. An iterator can be used only once.")
    if amax is None:
        raise CalibrationError(
            f"{path} saw no tensor in {batches} batches: their inputs do not reach it. Add the inputs it "
            "needs (encoder_hidden_states for cross-attention), or turn it off with an override."
        )
    if not bool(amax.isfinite().all()):
        raise CalibrationError(f"{path} saw NaN or infinity, so it has no range. Check weights and inputs.")
    return amax


@contextmanager
def _collecting(
    model: PreTrainedModel, quantizers: Mapping[str, TensorQuantizer], collectors: Mapping[str, RunningMax]
) -> Iterator[None]:
    """Let the quantizers collect instead of quantize, and put everything back however it ends."""
    modes = {module: module.training for module in model.modules()}
    everything = [quantizer for _, quantizer in named_quantizers(model)]
    before = [(each._calibrator, each._if_calib, each._if_quant) for each in everything]
    model.eval()
    for quantizer in everything:
        quantizer._if_quant = quantizer._if_calib = False
    for path, quantizer in quantizers.items():
        quantizer._calibrator, quantizer._if_calib = collectors[path], True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for quantizer, state in zip(everything, before, strict=True):
            quantizer._calibrator, quantizer._if_calib, quantizer._if_quant = state
