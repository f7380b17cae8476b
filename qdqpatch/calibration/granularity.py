"""From one range per weight to one per output channel.

`expand_amax` has the meaning of the function of that name in `quant_trainer.py` (NVIDIA; transformers 4.40,
`examples/research_projects/quantization-qdqbert/quant_trainer.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import PreTrainedModel

from qdqpatch.calibration.selecting import Model, load_ranges, range_of, weights_of
from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override
from qdqpatch.errors import ConfigError
from qdqpatch.nn.fake_quantize import absolute_max
from qdqpatch.patching.placement import first_like, placement, record
from qdqpatch.patching.quantize import float_twin
from qdqpatch.patching.switch import replace_quantizer

PER_CHANNEL: dict[str, Any] = {"axis": 0, "calib_method": "max"}
"""Settings of a weight with one range per output channel, which the toolkit has no histograms for."""


def expand_amax(model: Model) -> Model:
    """Repeat each weight's range per tensor for every output channel, in place.

    The outputs stay what they are, and from there each channel's range can go its own way. Weights that
    have ranges per channel stay. A quantizer that was made for one range per tensor becomes one for one
    per output channel (axis 0), and the model's `QDQConfig` follows.

    `quant_trainer.py` skips such quantizers, and gives the others a range of shape `(out,)`, which
    does not broadcast over a weight of shape `(out, in)`; here it is `(out, 1)`.

    Args:
        model: A quantized and calibrated model.

    Returns:
        The same model.

    Raises:
        NotQuantizedError: If the model has no quantizer.
        CalibrationError: If one of the weights has no range.
        ConfigError: If no weight is quantized, or the model was changed such that no configuration
            describes it.

    Whatever is raised, the model is as it was.
    """
    ranges, per_tensor = {}, []
    for path, (quantizer, weight) in weights_of(model).items():
        amax = range_of(path, quantizer)
        if amax.numel() == 1:
            axis = 0 if quantizer.axis is None else quantizer.axis
            per_channel = absolute_max(torch.empty_like(weight, device="meta"), axis)
            ranges[path] = amax.reshape(()).expand(per_channel.shape)
            if quantizer.axis is None:
                per_tensor.append(path)
    if per_tensor:
        _make_per_channel(model, per_tensor)
    return load_ranges(model, ranges)


def _make_per_channel(model: PreTrainedModel, paths: list[str]) -> None:
    """Exchange quantizers for ones of axis 0, and make the configuration say so."""
    twin = float_twin(model)
    config: QDQConfig = model.config.quantization_config
    named = tuple(Override(path, settings=PER_CHANNEL) for path in paths)
    exact = dataclasses.replace(config, overrides=(*config.overrides, *named))
    wanted = placement(twin, exact)
    missing = [path for path in paths if path not in wanted]
    if missing:
        raise ConfigError(
            f"The model's configuration does not know {missing[0]}: it was added or turned on, or its module "
            "hooked, after the model was quantized."
        )
    assert config.weight is not None, "quantizing fills what a configuration leaves open"
    everywhere = dataclasses.replace(config.weight, **PER_CHANNEL)
    shorter = dataclasses.replace(config, weight=everywhere)
    record(model, first_like(twin, wanted, [shorter, exact]))
    for path in paths:
        replace_quantizer(model, path, wanted[path])
