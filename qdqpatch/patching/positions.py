"""Refuse relative positions of BERT, whose weights transformers 5 drops without a word."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from qdqpatch.errors import ConfigError

WEIGHT = "distance_embedding"
"""The module that every `relative_key` attention has had in every version of transformers."""


def check_positions(model: nn.Module) -> None:
    """Find out whether a model computes the positions that its config names.

    Raises:
        ConfigError: If its config has relative position embeddings and its attention has none.
    """
    if not isinstance(model, PreTrainedModel):
        return
    kind = getattr(model.config, "position_embedding_type", None)
    if not isinstance(kind, str) or not kind.startswith("relative_key"):
        return
    if not any(name.rpartition(".")[2] == WEIGHT for name, _ in model.named_modules()):
        raise ConfigError(
            f"The config has position_embedding_type={kind!r}, which {type(model).__name__} in "
            'transformers 5 no longer computes; only "absolute" can be quantized.'
        )
