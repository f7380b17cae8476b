"""Carry out a plan: the only code that changes a model. All checks come before the first change."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from qdqpatch.choices import QUANT_METHOD
from qdqpatch.config.quantizer import QuantizerConfig
from qdqpatch.errors import (
    CalibrationError,
    NotQuantizedError,
    QdqError,
    UnsupportedModelError,
    no_range,
)
from qdqpatch.nn.attention import IMPLEMENTATION, float_matmuls
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.plan import Plan, Site
from qdqpatch.rules.rewriting import GUARD, combined


def apply_plan(model: PreTrainedModel, plan: Plan) -> None:
    """Give every site of the plan its quantizers and its class, in place.

    Fixed ranges (`amax` in the configuration) are not set here but by `set_fixed_ranges`, because a
    model that is being loaded has no memory for them yet.

    Raises:
        UnsupportedModelError: If transformers refuses the attention implementation that quantizes
            matmuls. The model is then as it was.
    """
    changes = [(model.get_submodule(site.path), site, _quantizers(site)) for site in plan.sites]
    guarded = [
        module for module, site, _ in changes if GUARD in getattr(site.becomes, "changes", frozenset())
    ]
    if guarded:
        _set_attention(model, guarded)
    for module, site, quantizers in changes:
        for name, quantizer in quantizers.items():
            module.add_module(name, quantizer.train(module.training))
        module.__class__ = combined(type(module), site.becomes)


def revert(model: PreTrainedModel, attn_implementation: str | None) -> None:
    """Undo `apply_plan`: every class, child and the attention implementation as before, in place.

    Args:
        model: A quantized model.
        attn_implementation: The attention implementation to return to; None for the usual default.
    """
    for part in model.modules():  # the parts of a composite model too, which transformers 5.0 leaves out
        if isinstance(part, PreTrainedModel) and part.config._attn_implementation == IMPLEMENTATION:
            part.set_attn_implementation(attn_implementation or "sdpa")
    for module in model.modules():
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == IMPLEMENTATION:
            config._attn_implementation = attn_implementation or "sdpa"
        if isinstance(module, QuantLinear) and module.input_scale is not None:
            module.scale_input(None)
        module.__class__ = getattr(module, "float_class", type(module))
        for name, child in list(module.named_children()):
            if isinstance(child, TensorQuantizer):
                delattr(module, name)


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, TensorQuantizer]]:
    """Yield path and module of every quantizer, in the order of `named_modules`."""
    for path, module in model.named_modules():
        if isinstance(module, TensorQuantizer):
            yield path, module


def enabled_quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    """Return every quantizer that is on, by its path.

    Raises:
        NotQuantizedError: If there is none.
    """
    quantizers = {path: quantizer for path, quantizer in named_quantizers(model) if quantizer.is_enabled}
    if not quantizers:
        if is_quantized(model):
            raise NotQuantizedError(
                f"All quantizers of this {type(model).__name__} are off, by hand or by overrides of its "
                "configuration: turn some on."
            )
        raise NotQuantizedError(
            f"This {type(model).__name__} is a float model: call qdqpatch.quantize(model) first."
        )
    return quantizers


def without_range(quantizers: Mapping[str, TensorQuantizer]) -> list[str]:
    """Return the paths of those of the quantizers that have no range."""
    return [path for path, quantizer in quantizers.items() if quantizer.amax is None]


def check_have_ranges(
    quantizers: Mapping[str, TensorQuantizer], error: type[QdqError] = CalibrationError
) -> None:
    """Raise the error if one of the quantizers, given by path, has no range."""
    if unset := without_range(quantizers):
        raise error(no_range(unset))


def quantized_part(model: nn.Module) -> str:
    """Return the path of the part that was quantized by a call of its own; empty if none or the whole was."""
    marks = ((path, vars(module).get("quantization_method")) for path, module in model.named_modules())
    return next((path for path, mark in marks if mark == QUANT_METHOD), "")


def check_whole(model: nn.Module) -> None:
    """Find out that a model is not one of which only a part was quantized.

    Raises:
        NotQuantizedError: If it is.
    """
    if part := quantized_part(model):
        if hasattr(model, "merge_and_unload"):
            raise NotQuantizedError(
                f"This {type(model).__name__} is an adapter of peft around a quantized model. Merge it "
                "first: model = model.merge_and_unload()."
            )
        raise NotQuantizedError(
            f"Of this {type(model).__name__} the part {part} alone was quantized. Pass that, or dequantize "
            "it and quantize the whole."
        )


def is_quantized(model: nn.Module) -> bool:
    """Whether the model has a quantizer."""
    return next(named_quantizers(model), None) is not None


def set_fixed_ranges(model: PreTrainedModel, plan: Plan) -> None:
    """Set the ranges that the configuration fixes, on quantizers that have none yet, and mark all of them."""
    for site in plan.sites:
        for name, config in site.quantizers.items():
            quantizer = model.get_submodule(f"{site.path}.{name}")
            assert isinstance(quantizer, TensorQuantizer), "the plan was applied"
            if config is None or config.amax is None:
                continue
            quantizer.is_fixed = True
            if quantizer.amax is None:
                quantizer.amax = config.amax
                quantizer.to(model.device)


@contextmanager
def own_config(model: PreTrainedModel) -> Iterator[None]:
    """Give the model a config of its own, so that another model made from the same one stays float.

    If the block fails, the model gets its old config back.
    """
    before = {
        module: vars(module)["config"]
        for module in model.modules()
        if isinstance(vars(module).get("config"), PreTrainedConfig)
    }
    copies: dict[int, Any] = {}  # shared between the calls, so that what was one object stays one
    for module, config in before.items():
        vars(module)["config"] = copy.deepcopy(config, copies)
    try:
        yield
    except BaseException:
        for module, config in before.items():
            vars(module)["config"] = config
        raise


def uses_qdq_attention(model: PreTrainedModel) -> bool:
    """Whether attention runs through `qdqpatch.nn.attention`."""
    return any(
        module.config._attn_implementation == IMPLEMENTATION
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
    )


def _quantizers(site: Site) -> dict[str, TensorQuantizer]:
    """Build a site's quantizers; one that is turned off is there, but disabled."""
    quantizers = {}
    for name, config in site.quantizers.items():
        if config is None:
            quantizers[name] = TensorQuantizer(disabled=True)
        else:
            quantizers[name] = make_quantizer(config)
    return quantizers


def make_quantizer(
    settings: QuantizerConfig, cls: type[TensorQuantizer] = TensorQuantizer
) -> TensorQuantizer:
    """Return a quantizer of these settings, without a range."""
    quantizer = cls(settings.without_amax().descriptor())
    quantizer.is_symmetric = settings.symmetric
    return quantizer


def _set_attention(model: PreTrainedModel, attention: Iterable[nn.Module]) -> None:
    """Let attention modules ask for the implementation that quantizes."""
    before = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION)
    if not uses_qdq_attention(model):
        model.set_attn_implementation(before)
        raise UnsupportedModelError(
            f"{type(model).__name__} does not compute attention through transformers' AttentionInterface, "
            f"so its matmuls cannot be quantized. To leave them float, {float_matmuls()}."
        )
    for module in attention:  # some have a config of their own, as those of ViT-MAE's decoder
        config = vars(module).get("config")
        if isinstance(config, PreTrainedConfig) and config._attn_implementation != IMPLEMENTATION:
            config._attn_implementation = IMPLEMENTATION
