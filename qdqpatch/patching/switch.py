"""Turn quantizers of a calibrated model off and on, such that a checkpoint of it loads the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override, QuantizerConfig
from qdqpatch.errors import ConfigError, OverrideError
from qdqpatch.nn.learned import refuse_learned
from qdqpatch.nn.linear import QuantLinear
from qdqpatch.nn.names import INPUT_SCALE, ZERO_POINT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import make_quantizer, named_quantizers
from qdqpatch.patching.input_scales import scaled_modules
from qdqpatch.patching.placement import Placement, extended, first_like, placement, record, without
from qdqpatch.patching.quantize import float_twin

Model = TypeVar("Model", bound=PreTrainedModel)


def switch_quantizers(model: Model, overrides: Mapping[str, bool]) -> Model:
    """Turn quantizers off and on by the patterns of their paths, in place.

    What `--quant-disable-keyword` and its like do in `quant_trainer.py` (NVIDIA; the QDQBERT example of
    transformers 4.40), and what `QDQConfig(overrides=...)` does before calibration. Patterns are globs,
    apply in order, and the last match wins: `{"*": False, "*.attention.*": True}` leaves attention alone
    quantized. A quantizer that is turned off keeps its range in memory, so that it can be turned on
    again, but is not saved; the model's `QDQConfig` follows, so that a checkpoint loads as the model is.
    Where no matmul is left quantized, the loaded model computes attention with transformers' default and
    not with `qdqpatch.nn.attention`, as after quantizing so; the last bits of its outputs may differ.

    Args:
        model: A quantized model.
        overrides: True or False by pattern. Quantizers that the configuration left out altogether
            cannot be turned on here: quantize anew for that.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model was not quantized by qdqpatch.
        OverrideError: If a pattern matches no quantizer of the model.
        ConfigError: If a pattern switches to something else than True or False, if no quantizer would
            be left on (`qdqpatch.dequantize` makes a float model), if one to turn off learns its range,
            or if the model was changed such that no configuration describes it.

    Whatever is raised, the model is as it was.
    """
    twin = float_twin(model)
    switches = _as_switches(overrides)
    config: QDQConfig = model.config.quantization_config
    quantizers = dict(named_quantizers(model))
    on = _switched(quantizers, switches, f"{model.base_model_prefix}.")
    before = placement(twin, config)
    changes = [Override(path, enabled=on[path]) for path in on if on[path] != (path in before)]
    exact = dataclasses.replace(config, overrides=extended(config, changes))
    wanted = placement(twin, exact)
    _check(wanted, on)
    refuse_learned(
        ((path, quantizer) for path, quantizer in quantizers.items() if not on[path]), "turn it off"
    )
    shorter = [
        dataclasses.replace(config, overrides=texts)
        for texts in (without(config, switches), extended(config, switches))
    ]
    record(model, first_like(twin, wanted, [*shorter, exact]))
    for path, quantizer in quantizers.items():
        if not on[path]:
            turn_off(quantizer)
        elif not quantizer.is_enabled:
            _turn_on(model, path, wanted[path])
    for _, linear in scaled_modules(model):
        if not isinstance(linear, QuantLinear):
            continue
        of_linear = (linear._input_quantizer, linear._weight_quantizer)
        if not any(quantizer.is_enabled for quantizer in of_linear):
            # It is loaded as a float Linear, which multiplies nothing; and these ranges fit no other weight.
            linear.scale_input(None)
            for quantizer in of_linear:
                quantizer.drop_range()
    return model


def turn_off(quantizer: TensorQuantizer) -> None:
    """Turn a quantizer off; its range is kept in memory, but no longer saved."""
    quantizer.disable()
    # Loading makes no quantizer where all of an operation are off, so its range would be left over.
    state = (
        ("_amax", quantizer.amax),
        (ZERO_POINT, quantizer.zero_point),
        (INPUT_SCALE, quantizer.input_scale),
    )
    for name, value in state:
        if value is not None:
            quantizer.register_buffer(name, value, persistent=False)


def replace_quantizer(model: PreTrainedModel, path: str, settings: QuantizerConfig) -> TensorQuantizer:
    """Put a new quantizer without a range in the place of one, of its class and mode, and return it."""
    before = model.get_submodule(path)
    assert isinstance(before, TensorQuantizer), "the path is a quantizer's"
    quantizer = make_quantizer(settings, type(before))
    quantizer.train(before.training)
    if settings.amax is not None:
        quantizer.is_fixed = True
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, quantizer)
    return quantizer


def _as_switches(overrides: Mapping[str, bool]) -> tuple[Override, ...]:
    if not isinstance(overrides, Mapping) or not all(isinstance(on, bool) for on in overrides.values()):
        raise ConfigError(
            f"Quantizers are switched by a mapping of pattern to True or False, not by {overrides!r}. Other "
            "settings are given when a model is quantized: QDQConfig(overrides=...)."
        )
    return QDQConfig(overrides=overrides).overrides  # type: ignore[arg-type]  # a mapping is accepted


def _switched(
    quantizers: Mapping[str, TensorQuantizer], switches: tuple[Override, ...], prefix: str
) -> dict[str, bool]:
    """Return which quantizers will be on."""
    on = {path: quantizer.is_enabled for path, quantizer in quantizers.items()}
    for switch in switches:
        # With and without the prefix that a head puts before the base, as overrides of a QDQConfig.
        matched = [path for path in on if switch.matches((path, prefix + path, path.removeprefix(prefix)))]
        if not matched:
            raise OverrideError(
                f"The pattern {switch.pattern!r} matches no quantizer of the model. Patterns are globs over "
                "the paths that print(qdqpatch.plan(model)) lists as quantized. What it lists as float can "
                "only be quantized anew, after qdqpatch.dequantize(model)."
            )
        on.update((path, switch.enabled is True) for path in matched)
    if not any(on.values()):
        raise ConfigError(
            "No quantizer would be left on. For the float model, call qdqpatch.dequantize(model), on a "
            "copy.deepcopy of it to come back."
        )
    return on


def _check(wanted: Placement, on: Mapping[str, bool]) -> None:
    """Refuse if even overrides that name every quantizer do not describe the model."""
    differing = sorted(wanted.keys() ^ {path for path in on if on[path]})
    if differing:
        raise ConfigError(
            f"The model's configuration cannot say what is on: {differing[0]} was added or taken away, or "
            "its module hooked, after the model was quantized."
        )


def _turn_on(model: PreTrainedModel, path: str, settings: QuantizerConfig) -> None:
    quantizer = model.get_submodule(path)
    assert isinstance(quantizer, TensorQuantizer), "the path is from named_quantizers"
    interval, scale = quantizer.interval, quantizer.input_scale
    if not _has(quantizer, settings):
        # It was off when the model was quantized, and so made without settings.
        quantizer = replace_quantizer(model, path, settings)
    quantizer.enable()
    quantizer.load_input_scale(scale)  # which was not saved either while the quantizer was off
    if interval is not None:
        quantizer.drop_range()
        quantizer.load_range(interval)
    elif settings.amax is not None:
        quantizer.load_range(torch.tensor(settings.amax, device=model.device))


def _has(quantizer: TensorQuantizer, settings: QuantizerConfig) -> bool:
    names = ("num_bits", "axis", "unsigned", "narrow_range", "scale_amax")
    return quantizer.is_symmetric == settings.symmetric and all(
        getattr(quantizer, name) == getattr(settings, name) for name in names
    )
