"""The pooling and what follows it of a sentence-transformers folder, built from its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qdqpatch.checkpoint.companions import (
    MODULES,
    TRANSFORMER,
    WEIGHTS,
    Companions,
    Module,
    module_settings,
)
from qdqpatch.errors import CheckpointError, one_line
from qdqpatch.nn.pooling import POOLINGS, Dense, Normalize, Pooling, SentenceHead, Truncate

LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Switches that older versions wrote, in the order in which the poolings are put side by side."""

VECTORS = "sentence_embedding"
"""What a module after the pooling reads and writes, where it does not say otherwise."""

IDENTITIES = ("Dropout",)


def load_sentence_head(companions: Companions) -> SentenceHead | None:
    """Build what makes embeddings of hidden states, with its weights, in eval mode.

    Returns:
        The head; None of a folder without `modules.json`, or whose modules do not pool (a cross-encoder's).

    Raises:
        CheckpointError: If a module is of a kind that is not known here, or its files are damaged.
    """
    _, *rest = companions.modules or (None,)
    if not any(module.kind == "Pooling" for module in rest if module is not None):
        return None
    pooling: Pooling | None = None
    steps: list[nn.Module] = []
    for module in rest:
        assert module is not None
        settings = module_settings(companions, module)
        where = f"{module.path} of {companions.source}"
        if module.kind == "Pooling" and pooling is None:
            pooling = Pooling(_modes(settings, where))
            if settings.get("include_prompt", True) is False and companions.prompt():
                raise CheckpointError(
                    f"{where} leaves the prompt's tokens out of the pooling, which is not possible here."
                )
        elif pooling is not None and module.kind in STEPS:
            _check_vectors(settings, where)
            try:
                steps.append(STEPS[module.kind](companions, module, settings))
            except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise CheckpointError(
                    f"Cannot build {module.kind} from {where}: {one_line(error)}"
                ) from error
        elif module.kind not in IDENTITIES:
            raise CheckpointError(
                f"{MODULES} of {companions.source} names a {module.kind}, which is not known here; known are "
                f"{TRANSFORMER}, Pooling, {', '.join((*STEPS, *IDENTITIES))}, in that order."
            )
    assert pooling is not None
    if companions.dimensions is not None:
        steps.append(Truncate(companions.dimensions))
    return SentenceHead(pooling, steps).eval().requires_grad_(False)


def _modes(settings: Mapping[str, Any], where: str) -> tuple[str, ...]:
    found = settings.get("pooling_mode")
    if found is None:
        found = [mode for key, mode in LEGACY_MODES.items() if settings.get(key)] or ["mean"]
    modes = (found,) if isinstance(found, str) else tuple(found)
    if unknown := [mode for mode in modes if mode not in POOLINGS]:
        raise CheckpointError(
            f"{where} has the pooling {unknown[0]!r}, which is not known here; known are "
            f"{', '.join(POOLINGS)}."
        )
    return modes


def _check_vectors(settings: Mapping[str, Any], where: str) -> None:
    for key in ("module_input_name", "module_output_name"):
        if (name := settings.get(key)) not in (None, VECTORS):
            raise CheckpointError(f"{where} has {key} {name!r}; only {VECTORS!r} is known here.")


def _dense(companions: Companions, module: Module, settings: Mapping[str, Any]) -> nn.Module:
    weights = _weights(companions, module)
    size = settings["in_features"], settings["out_features"]
    linear = nn.Linear(*size, bias=settings.get("bias", True))
    residual: nn.Module | None = None
    if settings.get("use_residual"):
        residual = nn.Identity() if size[0] == size[1] else nn.Linear(*size, bias=False)
    dense = Dense(linear, _activation(settings.get("activation_function")), residual)
    dense.load_state_dict(weights)
    return dense


def _layer_norm(companions: Companions, module: Module, settings: Mapping[str, Any]) -> nn.Module:
    norm = nn.LayerNorm(settings["dimension"])
    weights = _weights(companions, module)
    norm.load_state_dict({name.removeprefix("norm."): tensor for name, tensor in weights.items()})
    return norm


def _normalize(companions: Companions, module: Module, settings: Mapping[str, Any]) -> nn.Module:
    return Normalize()


STEPS = {"Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalize}
"""What builds a module that follows the pooling, by its kind."""


def _activation(name: str | None) -> nn.Module:
    """Return an activation of torch by its full name; sentence-transformers' own default is Tanh."""
    if name is None:
        return nn.Tanh()
    activation = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.") else None
    if not isinstance(activation, type) or not issubclass(activation, nn.Module):
        raise ValueError(f"the activation {name!r} is none of torch.nn")
    made: nn.Module = activation()
    return made


def _weights(companions: Companions, module: Module) -> dict[str, Tensor]:
    safe, pickled = (companions.files.get(f"{module.path}/{name}") for name in WEIGHTS)
    try:
        if safe is not None:
            return load_file(safe)
        assert pickled is not None, "read_companions found one of them"
        weights: dict[str, Tensor] = torch.load(Path(pickled), map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read the weights in {module.path} of {companions.source}: {one_line(error)}"
        ) from error
    return weights
