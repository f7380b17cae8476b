"""From the hidden states of tokens to one vector for a text, as sentence-transformers computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


def _first(states: Tensor, mask: Tensor) -> Tensor:
    place = mask.to(torch.int32).argmax(dim=1)
    return states.gather(1, place[:, None, None].expand(-1, 1, states.size(-1))).squeeze(1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(mask.size(1), device=mask.device)
    place = (mask.to(torch.int64) * places).argmax(dim=1)
    return states.gather(1, place[:, None, None].expand(-1, 1, states.size(-1))).squeeze(1)


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask[..., None] == 0, float("-inf")).amax(dim=1)


def _sum(states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(states, mask)
    return total / count


def _mean_root(states: Tensor, mask: Tensor) -> Tensor:
    total, count = _sum(states, mask)
    return total / count.sqrt()


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Weight each token by its position, which is counted from the first one that is not padding."""
    positions = torch.arange(1, mask.size(1) + 1, device=mask.device)
    before = mask.to(torch.int32).argmax(dim=1)
    return _mean(states, mask * (positions[None] - before[:, None]))


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""From hidden states, shape `(batch, length, hidden)`, and the mask, 1 for a token, to `(batch, hidden)`."""


class Pooling(nn.Module):
    """One or more poolings of the tokens' hidden states, one beside the other.

    Args:
        modes: Keys of `POOLINGS`.
    """

    def __init__(self, modes: Iterable[str] = ("mean",)) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool hidden states, shape `(batch, length, hidden)`, to `(batch, hidden x modes)`."""
        return torch.cat([POOLINGS[mode](states, mask) for mode in self.modes], dim=-1)


class Dense(nn.Module):
    """A Linear and its activation, whose input may be added to the result.

    Args:
        linear: The Linear.
        activation: What follows it.
        residual: Brings the input to the size of the result; `Identity` where they are alike, None where it
            is not added.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors, shape `(batch, in_features)`, to `(batch, out_features)`."""
        mapped: Tensor = self.activation(self.linear(vectors))
        return mapped if self.residual is None else mapped + self.residual(vectors)


class Normalize(nn.Module):
    """Scales vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors of the same shape."""
        return functional.normalize(vectors, p=2.0, dim=-1)


class Truncate(nn.Module):
    """Keeps the first dimensions of vectors, as models are trained for it by Matryoshka (arXiv 2205.13147).

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, vectors: Tensor) -> Tensor:
        """Cut vectors, shape `(batch, hidden)`, to `(batch, size)`; shorter ones stay."""
        return vectors[..., : self.size]


class SentenceHead(nn.Module):
    """All that makes a text's embedding of its tokens' hidden states.

    Args:
        pooling: The first step.
        steps: The others, in order: from vectors to vectors.
    """

    def __init__(self, pooling: Pooling, steps: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.pooling = pooling
        self.steps = nn.Sequential(*steps)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return embeddings, shape `(batch, size)`.

        Args:
            states: Hidden states of the last layer, shape `(batch, length, hidden)`.
            mask: 1 for a token and 0 for padding, shape `(batch, length)`.
        """
        embeddings: Tensor = self.steps(self.pooling(states, mask))
        return embeddings


def mask_of(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the attention mask of a batch; ones where it has none."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask
