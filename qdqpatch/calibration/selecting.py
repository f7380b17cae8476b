"""Select quantizers whose ranges are to be adjusted, and give them others; those that are off stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.errors import CalibrationError, ConfigError, NotQuantizedError, no_range
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import is_quantized

Model = TypeVar("Model", bound=PreTrainedModel)


def check_quantized(model: nn.Module) -> None:
    """Raise a `NotQuantizedError` if the model has no quantizer."""
    if not is_quantized(model):
        raise NotQuantizedError(
            f"This {type(model).__name__} is a float model: call qdqpatch.quantize(model) first."
        )


def enabled_of(named: Iterable[tuple[str, nn.Module | None]]) -> dict[str, TensorQuantizer]:
    """Return those that are quantizers and on, by path."""
    return {
        path: module for path, module in named if isinstance(module, TensorQuantizer) and module.is_enabled
    }


def weights_of(model: nn.Module) -> dict[str, tuple[TensorQuantizer, Tensor]]:
    """Return every weight quantizer that is on, with its weight, by path.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        ConfigError: If no weight is quantized.
    """
    check_quantized(model)
    owners = {f"{path}.{WEIGHT}": module for path, module in model.named_modules()}
    found = enabled_of((path, owner._modules.get(WEIGHT)) for path, owner in owners.items())
    if not found:
        raise ConfigError("The model has no quantized weight: its configuration leaves all of them float.")
    return {path: (quantizer, owners[path].get_parameter("weight")) for path, quantizer in found.items()}


def plain_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """Return the quantized Linears whose weight nothing else reads, by path.

    A subclass, as of an adapter or with a parametrization, may compute something else from its weight.
    """
    users = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    return {
        path: module
        for path, module in model.named_modules()
        if type(module) is QuantLinear and users[id(module.weight)] == 1
    }


def range_of(path: str, quantizer: TensorQuantizer) -> Tensor:
    """Return the range of a quantizer, as `load_range` takes it.

    Raises:
        CalibrationError: If it has none.
    """
    interval = quantizer.interval
    if interval is None:
        raise CalibrationError(no_range([path]))
    return interval


def check_can_share(group: Mapping[str, TensorQuantizer]) -> None:
    """Find out whether the configuration lets quantizers have one range, whichever that is.

    Raises:
        ConfigError: If it fixes that of one, and another one of the others or none.
    """
    fixed = {
        path: quantizer.amax.max().item()
        for path, quantizer in group.items()
        if quantizer.is_fixed and quantizer.amax is not None
    }
    for path, amax in fixed.items():
        other = next((one for one in group if fixed.get(one) != amax), None)
        if other is not None:
            raise ConfigError(
                f"The configuration fixes the range of {path} at {amax:g}, and {other}, which is to have the "
                "same one, has another. Quantize anew without that amax, or with it for both."
            )


def load_ranges(model: Model, ranges: Mapping[str, Tensor]) -> Model:
    """Give quantizers their ranges, by path, and return the model.

    Raises:
        ConfigError: If that would change a range that the configuration fixes. Nothing is set then.
    """
    changes = []
    for path, changed in ranges.items():
        quantizer = model.get_submodule(path)
        assert isinstance(quantizer, TensorQuantizer), "the paths are those of quantizers"
        amax = quantizer.amax
        if quantizer.is_fixed and amax is not None and not bool((amax == changed.to(amax.device)).all()):
            raise ConfigError(
                f"The configuration fixes the range of {path} at {amax.max().item():g}. Quantize anew "
                "without that amax, or turn the quantizer off."
            )
        changes.append((quantizer, changed))
    for quantizer, changed in changes:
        quantizer.load_range(changed)
    return model
