"""Keep a model's `QDQConfig` true when its quantizers are changed after `quantize`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from qdqpatch.config.config import QDQConfig
from qdqpatch.config.quantizer import Override, QuantizerConfig
from qdqpatch.errors import UnsupportedModelError
from qdqpatch.patching.sites import find_sites

Placement = dict[str, QuantizerConfig]
"""The settings of every quantizer that is on, by its path."""


def placement(twin: PreTrainedModel, config: QDQConfig) -> Placement:
    """Return what a configuration would turn on in a float model; what loading a checkpoint does."""
    try:
        sites = find_sites(twin, config, strict=False).sites
    except UnsupportedModelError:  # nothing is on
        return {}
    return {
        f"{site.path}.{name}": settings
        for site in sites
        for name, settings in site.quantizers.items()
        if settings is not None
    }


def extended(config: QDQConfig, overrides: Sequence[Override]) -> tuple[Override, ...]:
    """Return the configuration's overrides and further ones, without those that no longer count."""
    return without(config, overrides) + tuple(overrides)


def without(config: QDQConfig, overrides: Sequence[Override]) -> tuple[Override, ...]:
    """Return the configuration's overrides without switches that the further ones would outdo."""
    switched = {override.pattern for override in overrides if override.enabled is not None}
    return tuple(
        override for override in config.overrides if override.settings or override.pattern not in switched
    )


def first_like(twin: PreTrainedModel, wanted: Placement, candidates: Sequence[QDQConfig]) -> QDQConfig:
    """Return the first of the configurations that gives the placement; the last one is known to."""
    for candidate in candidates[:-1]:
        if placement(twin, candidate) == wanted:
            return candidate
    return candidates[-1]


def record(model: PreTrainedModel, config: QDQConfig) -> None:
    """Make the configuration the one that is saved with the model."""
    model.config.quantization_config = config
    vars(model)["hf_quantizer"].quantization_config = config
