"""What quantizing costs without labels: how far outputs are from the float model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qdqpatch import distributed
from qdqpatch.tasks.base import Task
from qdqpatch.tasks.head import MEASURES, Meaning, divergence

ROWS = 128
"""So many distributions are compared at once: over a vocabulary, in fp64, each copy of them is 31 MB."""


def meaning(name: str, values: Tensor, task: Task[Any]) -> Meaning:
    """Return what an output of a task's model means."""
    return task.meaning(name, values.shape[-1])


def rows_of(name: str, values: Tensor, task: Task[Any], mask: Tensor | None) -> Tensor:
    """Return the rows of an output that are one distribution or one vector, without padding.

    Args:
        name: The output's.
        values: Shape `(batch, outcomes)`; `(batch, tokens)`, a distribution over positions, with -inf put
            where there is padding; `(batch, tokens, classes)`, a distribution for each token; or states,
            `(batch, tokens, hidden)`, of which the mean over tokens is taken.
        task: Tells what outputs mean, and which have an entry for each token.
        mask: Shape `(batch, tokens)`, 1 where there is no padding; None of what has no tokens.

    Returns:
        fp32, shape `(rows, outcomes)`.
    """
    values = values.float()
    if name not in task.by_token:
        return values.flatten(0, -2)
    assert mask is not None  # what has tokens has one
    data = mask.to(values.device).bool()
    if meaning(name, values, task) == "states":
        weights = data.unsqueeze(-1).float()
        return (values * weights).sum(1) / weights.sum(1)
    return values[data] if values.dim() == 3 else values.masked_fill(~data, -torch.inf)


def measure_of(task: Task[Any], outputs: Mapping[str, Tensor]) -> str:
    """Return what the cost of a task's outputs is called."""
    return MEASURES[meaning(task.logits[0], outputs[task.logits[0]], task)]


class Cost:
    """The mean divergence over all rows of an output, summed over the outputs.

    Args:
        task: Names the outputs.
    """

    def __init__(self, task: Task[Any]) -> None:
        self._task = task
        self._totals = dict.fromkeys(task.logits, 0.0)
        self._counts = dict.fromkeys(task.logits, 0)

    def add(self, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], mask: Tensor | None) -> None:
        """Count one batch.

        Args:
            expected: The float model's outputs, by name.
            actual: The outputs of the model that is judged.
            mask: Shape `(batch, tokens)`, 1 where there is no padding; None of what has no tokens.
        """
        for name in self._task.logits:
            means = meaning(name, expected[name], self._task)
            one, other = (rows_of(name, outputs[name], self._task, mask) for outputs in (expected, actual))
            for p, q in zip(one.split(ROWS), other.split(ROWS), strict=True):
                self._totals[name] += float(divergence(means, p.double(), q.double()).sum())
            self._counts[name] += len(one)

    def merge(self, device: torch.device) -> None:
        """Add what other processes counted of the batches that they share.

        Args:
            device: Where they exchange it.
        """
        own = {
            name: torch.tensor([self._totals[name], self._counts[name]], dtype=torch.float64)
            for name in self._totals
        }
        for name, (total, count) in distributed.sum_over_processes(own, device).items():
            self._totals[name], self._counts[name] = float(total), int(count)

    @property
    def value(self) -> float:
        """The cost over all batches so far."""
        return sum(self._totals[name] / self._counts[name] for name in self._totals if self._counts[name])
