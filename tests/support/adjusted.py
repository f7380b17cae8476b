"""Calibrated models whose ranges are adjusted, and ways to look at their quantizers."""

from pathlib import Path
from typing import Any

import models
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from qdqpatch import QDQConfig, calibrate, quantize
from qdqpatch.patching.apply import named_quantizers

PER_TENSOR = {"weight": {"axis": None}}


def with_ranges(model: PreTrainedModel) -> PreTrainedModel:
    """Give every range another value, so that none is the largest of a group by chance."""
    generator = torch.Generator().manual_seed(5)
    for _, quantizer in named_quantizers(model):
        if quantizer.amax is not None:
            quantizer.load_range(quantizer.amax * (0.5 + torch.rand((), generator=generator)))
    return model


def model_of(
    name: str = "BertModel", config: dict[str, Any] | None = None, **changes: Any
) -> PreTrainedModel:
    model = quantize(models.build(name, **changes), QDQConfig(**config or {}))
    return with_ranges(calibrate(model, [models.inputs(name, seed) for seed in (2, 3)], "percentile"))


def check_ranges(model: nn.Module, before: dict[str, Tensor | None], expected: dict[str, Tensor]) -> None:
    """Compare with the ranges before and what should differ from them; it must in fact differ."""
    models.assert_equal(models.ranges(model), before | expected)
    assert any(not torch.equal(before[path], amax) for path, amax in expected.items())


def settings(model: nn.Module) -> list[Any]:
    names = ("num_bits", "axis", "unsigned", "narrow_range", "scale_amax", "is_enabled", "training")
    return [
        (path, [getattr(quantizer, name) for name in names], quantizer._calibrator._axis)
        for path, quantizer in named_quantizers(model)
    ]


def enabled(model: nn.Module) -> list[tuple[str, Any]]:
    return [(path, quantizer) for path, quantizer in named_quantizers(model) if quantizer.is_enabled]


def check_saving(model: PreTrainedModel, folder: Path) -> None:
    """See that a checkpoint has exactly its keys and loads as the same model."""
    model.save_pretrained(folder)
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert {kind: set(keys) for kind, keys in info.items() if keys} == {}
    models.assert_equal(dict(loaded.state_dict()), dict(model.state_dict()))
    assert loaded.config.quantization_config == model.config.quantization_config
    assert str(settings(loaded)) == str(settings(model))
    models.assert_equal(models.outputs(loaded), models.outputs(model))


def train(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
