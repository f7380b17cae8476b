"""A metric as a ratio of sums over examples, so that it can be resampled and compared example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdqpatch.data.arrays import Arrays

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One figure of a model on a data set.

    Attributes:
        name: What it is called, such as "F1".
        numerators: One summand for each example.
        denominators: What they are divided by, summed too; ones make a mean.
        in_percent: Whether the ratio is given in percent.
        exponential: Whether the ratio is a logarithm whose exponential is the figure (perplexity).
    """

    name: str
    numerators: Floats
    denominators: Floats
    in_percent: bool = True
    exponential: bool = False

    @property
    def higher_is_better(self) -> bool:
        """Whether a better model has a higher figure: of all but perplexity."""
        return not self.exponential

    @property
    def value(self) -> float:
        """The figure on all examples."""
        return float(self.of(self.numerators.sum(), self.denominators.sum()))

    def of(self, numerators: Floats, denominators: Floats) -> Floats:
        """Return the figures of sums over samples of the examples."""
        ratio = np.divide(
            numerators, denominators, out=np.zeros_like(numerators, dtype=np.float64), where=denominators != 0
        )
        if self.exponential:
            return np.exp(ratio)
        return 100 * ratio if self.in_percent else ratio

    def __str__(self) -> str:
        bounded_by_one = not (self.in_percent or self.exponential)
        return f"{self.value:.4f}" if bounded_by_one else f"{self.value:.2f}"


def mean(name: str, values: list[float], in_percent: bool = True) -> Metric:
    """Return the mean of a value that every example has."""
    numerators = np.array(values, dtype=np.float64)
    return Metric(name, numerators, np.ones_like(numerators), in_percent)


def accuracy(outputs: Sequence[Arrays], labels: Sequence[int | None]) -> Metric:
    """Return how often the highest of the `logits` is the label's."""
    right = [np.argmax(output["logits"]) == label for output, label in zip(outputs, labels, strict=True)]
    return mean("accuracy", [float(each) for each in right])
