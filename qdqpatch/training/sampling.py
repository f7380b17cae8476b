"""The order of training data: random, but sequences of like length in a batch, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL = 50
"""As many batches are drawn at random, sorted by length, and taken in random order."""


class LengthGroupedSampler(Sampler[int]):
    """Numbers of features in an order that depends on seed and epoch alone, so that a run can be resumed.

    transformers' own sampler depends on whatever was drawn at random before it.

    Args:
        lengths: The length of each feature.
        batch_size: How many features make a batch.
        seed: What the order depends on.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = torch.tensor(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take another order for each epoch; accelerate calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        for pool in order.split(POOL * self._batch_size):
            by_length = pool[self._lengths[pool].argsort(stable=True)]
            batches = by_length.split(self._batch_size)
            # The last batch, which may be smaller, stays last, or all that follow would be cut elsewhere.
            places = [*torch.randperm(len(batches) - 1, generator=generator).tolist(), len(batches) - 1]
            for place in places:
                yield from batches[place].tolist()
