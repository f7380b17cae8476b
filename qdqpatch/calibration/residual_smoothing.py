"""Smooth residual adds: each operand's loud channels are divided before its quantizer, and multiplied after.

What a feed-forward block adds has a few channels a hundred times as large as the others: in
all-MiniLM-L6-v2 one at the token [CLS], and in its last layers one whose size weighs the tokens. One step
for all channels leaves the others hardly a level. So a quantizer takes Q(x s) / s, with s = t / amax(x) for
each channel that reaches further than t, the median of all: the quiet half is left as it is, because what is
quiet here need not be so on other texts, and no channel then reaches further than t.

That is SmoothQuant's migration (Xiao et al., arXiv 2211.10438), but for an add, which has no weight that
could take the factors; nor need it, since both operands are multiplied back before they are added. So the
float model does not change at all. An engine multiplies twice for each operand, where it quantizes it.

The residual operand is what a LayerNorm writes, and Linears read it too. Where `smooth_inputs` gave these
factors, it takes the same, so that one tensor of integers serves all (`fuse_inputs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.batching import as_tensors
from qdqpatch.calibration.channels import collect_channels
from qdqpatch.calibration.forgetting import check_forgettable, forget_ranges
from qdqpatch.calibration.selecting import check_quantized
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.errors import UnsupportedModelError
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.input_scales import scaled_modules
from qdqpatch.rules.rewriting import Wrap

Model = TypeVar("Model", bound=PreTrainedModel)

SMALLEST = 1 / 256
"""Of the factors: a channel that is louder than 256 times the median keeps some of what it is ahead."""


def smooth_residuals(model: Model, batches: Iterable[Mapping[str, Any]], padding_aware: bool = True) -> Model:
    """Give the quantizers of residual adds factors for their channels, so that none is an outlier, in place.

    The float model runs once on the batches; it does not change. Calibration must follow: ranges that no
    longer fit are dropped, and a quantizer without one computes it from each tensor. Adds of images, of four
    axes, are left as they are.

    Args:
        model: A quantized model, calibrated or not.
        batches: Keyword arguments for the model, as a tokenizer returns them; moved to its device.
        padding_aware: Whether positions that the attention mask hides are left out.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If no residual add is quantized.
        ConfigError: If a range to drop is learned.
        CalibrationError: If there is no batch, or an operand saw no data, NaN or infinity.

    Whatever is raised, the model is as it was.
    """
    operands = operands_to_smooth(model)
    linears: dict[str, QuantLinear] = {
        path: module for path, module in scaled_modules(model) if isinstance(module, QuantLinear)
    }
    watched: dict[str, nn.Module] = {**operands, **linears}
    with _images(operands) as found:
        channels = collect_channels(model, watched, as_tensors(batches, model), padding_aware, inputs=True)
    left = distributed.found_by_any(found, list(operands), model.device)
    operands = {path: quantizer for path, quantizer in operands.items() if path not in left}
    given = {channels[path].key: linear.input_scale for path, linear in linears.items()}
    with restored_if_raised(model, ()):
        for path, quantizer in operands.items():
            seen = channels[path]
            factors = given.get(seen.key)
            if factors is None:
                factors = _factors(seen.amax.float().to(model.device))
            quantizer.load_input_scale(None if factors is None else factors.float().clone())
        forget_ranges(model, operands.values())
    return model


@contextmanager
def _images(operands: Mapping[str, TensorQuantizer]) -> Iterator[set[str]]:
    """Collect, while the model runs, the paths of operands whose last axis is no channel: `(N, C, H, W)`."""
    found: set[str] = set()

    def look(path: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].dim() > 3:
            found.add(path)

    with ExitStack() as stack:
        for path, quantizer in operands.items():
            stack.callback(quantizer.register_forward_pre_hook(partial(look, path)).remove)
        yield found


def operands_to_smooth(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return the quantizers of residual adds that `smooth_residuals` gives factors, by path.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        UnsupportedModelError: If there is none.
        ConfigError: If a range that must be dropped is learned.
    """
    check_quantized(model)
    operands = _operands(model)
    if not operands:
        raise UnsupportedModelError(
            f"There is no residual add to smooth in {type(model).__name__}: none has a quantizer that is on, "
            "with one range that is not fixed."
        )
    check_forgettable(model, operands.values(), "smooth")
    return operands


def can_smooth_residuals(model: nn.Module) -> bool:
    """Return whether there is a residual add that `smooth_residuals` may change."""
    return bool(_operands(model))


def _operands(model: nn.Module) -> dict[str, TensorQuantizer]:
    found = {
        f"{path}.{name}".removeprefix("."): module._modules.get(name)
        for path, module in model.named_modules()
        for wrap in getattr(type(module), "changes", ())
        if isinstance(wrap, Wrap) and wrap.kind == "residual add"
        for name in wrap.quantizers
    }
    return {
        path: quantizer
        for path, quantizer in found.items()
        if isinstance(quantizer, TensorQuantizer)
        and quantizer.is_enabled
        and not quantizer.is_fixed
        and quantizer.axis is None
    }


def _factors(amax: Tensor) -> Tensor | None:
    """Return what channels are multiplied by that reach as far as `amax`, `(channels,)`; None if nothing."""
    factors = (amax.median() / amax).nan_to_num(1).clamp(SMALLEST, 1)
    return None if bool((factors == 1).all()) else factors
