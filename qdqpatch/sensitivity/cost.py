"""What quantizing costs without labels: how far outputs are from the float model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qdqpatch.tasks.base import Task

STATES = "last_hidden_state"
"""The output of models without a head, which is no distribution."""

ROWS = 128
"""So many distributions are compared at once: over a vocabulary, in fp64, each copy of them is 31 MB."""


def distributions(name: str, logits: Tensor, task: Task[Any], mask: Tensor) -> Tensor:
    """Return the rows of an output that each are one distribution, or one vector, without padding.

    Args:
        name: The output's.
        logits: Shape `(batch, classes)`; `(batch, tokens)`, a distribution over positions, with -inf put
            where there is padding; `(batch, tokens, classes)`, a distribution for each token; or states,
            `(batch, tokens, hidden)`, of which the mean over tokens is taken.
        task: Tells which outputs have an entry for each token.
        mask: Shape `(batch, tokens)`, 1 where there is no padding.

    Returns:
        fp32, shape `(distributions, outcomes)`.
    """
    logits = logits.float()
    if name not in task.by_token:
        return logits.flatten(0, -2)
    data = mask.to(logits.device).bool()
    if name == STATES:
        weights = data.unsqueeze(-1).float()
        return (logits * weights).sum(1) / weights.sum(1)
    return logits[data] if logits.dim() == 3 else logits.masked_fill(~data, -torch.inf)


def divergence(expected: Tensor, actual: Tensor) -> float:
    """Return the sum over the rows of the Kullback-Leibler divergence KL(expected || actual), in nats.

    Args:
        expected: Logits, shape `(distributions, outcomes)`; -inf for outcomes that cannot be.
        actual: Logits of the same shape, with -inf in the same places.
    """
    total = 0.0
    for p, q in zip(expected.split(ROWS), actual.split(ROWS), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        possible = log_p.isfinite()
        log_p, log_q = log_p[possible], log_q[possible]
        total += functional.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
    return total


def distance(expected: Tensor, actual: Tensor) -> float:
    """Return the sum over the rows of 1 - cosine, for vectors of shape `(vectors, size)`."""
    cosines = functional.cosine_similarity(expected.double(), actual.double(), dim=-1)
    return float((1 - cosines).sum())


class Cost:
    """The mean of a distance over all distributions of an output, summed over the outputs.

    Args:
        task: Names the outputs.
    """

    def __init__(self, task: Task[Any]) -> None:
        self._task = task
        self._totals = dict.fromkeys(task.logits, 0.0)
        self._counts = dict.fromkeys(task.logits, 0)

    def add(self, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], mask: Tensor) -> None:
        """Count one batch.

        Args:
            expected: The float model's outputs, by name.
            actual: The outputs of the model that is judged.
            mask: Shape `(batch, tokens)`, 1 where there is no padding.
        """
        for name in self._task.logits:
            rows = [distributions(name, each[name], self._task, mask) for each in (expected, actual)]
            self._totals[name] += (distance if name == STATES else divergence)(*rows)
            self._counts[name] += len(rows[0])

    @property
    def value(self) -> float:
        """The cost over all batches so far."""
        return sum(self._totals[name] / self._counts[name] for name in self._totals if self._counts[name])
