"""Numbers of a damaged `config.json`: found out before a model of that size is built."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from qdqpatch.errors import CheckpointError

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
"""What no model has none of; torch computes with negative ones for a while."""

LAYERS = (
    "num_hidden_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "n_layer",
    "n_layers",
)
"""What configs call the number of layers."""

MANY = 1000
"""More layers than this take long to build, and more tensors than this hold them."""

LABELS = 10_000_000
"""transformers makes names for so many labels for half a minute, and no head has more."""

SLACK, SPARE = 16, 2**28
"""A head that the checkpoint lacks may make a model larger; so much larger, it is none of these weights."""


def check_counts(config: Mapping[str, Any], name: str, weights: Collection[str] | None = None) -> None:
    """Find out whether a model has as many layers and labels as its config says.

    Args:
        config: The content of its `config.json`.
        name: The checkpoint, for the error.
        weights: The names of its weights; None to look at what needs none.

    Raises:
        CheckpointError: If it has not.
    """
    for key, value in _numbers(config):
        if weights is None and key == "num_labels" and value > LABELS:
            raise CheckpointError(f"The config.json of {name} is damaged: {key} is {value}.")
        if weights is not None and key in LAYERS and value > max(MANY, len(weights)):
            raise CheckpointError(
                f"The config.json of {name} is damaged: {key} is {value}, and there are {len(weights)} "
                "weights in all."
            )


def check_size(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Find out whether a model is about as large as its checkpoint.

    Args:
        model: The model that its config describes, on the meta device.
        shapes: The shapes of the weights.
        name: The checkpoint, for the error.

    Raises:
        CheckpointError: If it is very much larger.
    """
    stored = sum(map(math.prod, shapes.values()))
    wanted = sum(tensor.numel() for tensor in model.state_dict().values())
    if wanted <= SLACK * stored + SPARE:
        return
    key, value = max(model.state_dict().items(), key=lambda item: item[1].numel())
    raise CheckpointError(
        f"The config.json of {name} is not that of its weights: it describes a model of {wanted:.1e} "
        f"numbers, and they have {stored:.1e}. Its {key} would have shape {tuple(value.shape)}."
    )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers of a config, and of those in it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield str(key), value
