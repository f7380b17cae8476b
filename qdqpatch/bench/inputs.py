"""What models are given: random tokens in the shape asked for, none of them padding; or random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.engines.contenders import Facts
from qdqpatch.engines.sessions import Input
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ConfigError
from qdqpatch.spelling import counted

UNKNOWN_VOCABULARY = 1000
"""Ids are below this where no config tells the size of the vocabulary."""

POSITIONS = "position_ids"
"""May have a batch of 1 whatever the others have: positions are the same for all."""


def random_tokens(shape: Shape, facts: Facts) -> Array:
    """Draw ids of shape `(batch, length)`, the same each time."""
    size = facts.vocab_size or UNKNOWN_VOCABULARY
    padding = facts.pad_token_id or 0
    drawn = np.random.default_rng(0).integers(0, max(size - 1, 1), (shape.batch, shape.length))
    return drawn + (drawn >= padding) if size > 1 else drawn


def _ones(shape: Shape, facts: Facts) -> Array:
    return np.ones((shape.batch, shape.length))


def _zeros(shape: Shape, facts: Facts) -> Array:
    return np.zeros((shape.batch, shape.length))


def _positions(shape: Shape, facts: Facts) -> Array:
    return np.tile(np.arange(shape.length), (shape.batch, 1))


PIXELS = "pixel_values"
"""Images, `(batch, channels, height, width)`: the length that was asked for means nothing to them."""

VALUES: dict[str, Callable[[Shape, Facts], Array]] = {
    "input_ids": random_tokens,
    "attention_mask": _ones,
    "input_mask": _ones,
    "token_type_ids": _zeros,
    "segment_ids": _zeros,
    POSITIONS: _positions,
}
"""What a tensor of that name holds."""


def check_inputs(name: str, inputs: Sequence[Input]) -> None:
    """Find out whether a model takes nothing but tokens and images.

    Raises:
        ConfigError: If it takes a tensor that is not known, or one that is not `(batch, length)`.
    """
    unknown = [value.name for value in inputs if value.name not in (*VALUES, PIXELS)]
    if unknown:
        raise ConfigError(f"{name} takes {', '.join(unknown)}; bench makes {', '.join((*VALUES, PIXELS))}.")
    for value in inputs:
        if value.name != PIXELS and len(value.shape) not in (0, 2):
            raise ConfigError(
                f"{name} takes {value.name} of {counted(len(value.shape), 'dimension')}; bench makes "
                "(batch, length)."
            )


def make_inputs(inputs: Sequence[Input], shape: Shape, facts: Facts) -> Arrays:
    """Return the tensors that a model takes; `check_inputs` comes before."""
    tensors = {}
    for value in inputs:
        if value.name == PIXELS:
            tensors[PIXELS] = _pixels(value, shape.batch, facts).astype(value.dtype)
            continue
        own = shape
        if value.name == POSITIONS and value.shape and value.shape[0] is not None:
            own = Shape(value.shape[0], shape.length)
        tensors[value.name] = VALUES[value.name](own, facts).astype(value.dtype)
    return tensors


def _pixels(value: Input, batch: int, facts: Facts) -> Array:
    """Draw images of the size that the graph is made for, or else the one that the config names.

    Raises:
        ConfigError: If neither says.
    """
    fixed = [side for side in value.shape[1:] if side is not None]
    size = fixed if len(fixed) == 3 else facts.image
    if size is None:
        raise ConfigError(
            "How large the images are is not said by the graph, nor by a config.json beside it."
        )
    return np.random.default_rng(0).standard_normal((batch, *size))
