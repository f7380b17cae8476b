"""Metrics that can be computed again on a sample of the examples, and compared example by example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import DataError

Floats = NDArray[np.float64]


def decimal(value: float, digits: int, sign: str = "") -> str:
    """Write a number with digits after the point; one too long for a table, as a power of ten."""
    return f"{value:{sign}.{digits}f}" if abs(value) < LONG else f"{value:{sign}.3e}"


LONG = 1e7
"""Numbers are written out below this."""


@dataclass(frozen=True)
class Metric(ABC):
    """One figure of a model on a data set.

    Attributes:
        name: What it is called, such as "F1".
    """

    name: str

    @property
    @abstractmethod
    def columns(self) -> tuple[Floats, ...]:
        """What the figure is computed from: arrays with an entry for each example."""

    @abstractmethod
    def figures(self, *columns: Floats, axis: int = -1) -> Floats:
        """Return the figure of each sample of the examples.

        Args:
            *columns: Those of `columns`, drawn again.
            axis: The one of the examples.
        """

    @property
    def higher_is_better(self) -> bool:
        """Whether a better model has a higher figure."""
        return True

    @property
    def digits(self) -> int:
        """How many digits after the point are written."""
        return 4

    @property
    def has_interval(self) -> bool:
        """Whether the figures of samples tell how far the choice of the examples counts."""
        return True

    @property
    def value(self) -> float:
        """The figure on all examples."""
        return float(self.figures(*self.columns))

    def __str__(self) -> str:
        return decimal(self.value, self.digits)


@dataclass(frozen=True)
class Ratio(Metric):
    """A ratio of sums over the examples.

    Attributes:
        numerators: One summand for each example.
        denominators: What they are divided by, summed too; ones make a mean.
        in_percent: Whether the ratio is given in percent.
        exponential: Whether the ratio is a logarithm whose exponential is the figure (perplexity).
        is_error: Whether it is a mean of errors, so that lower is better.
    """

    numerators: Floats
    denominators: Floats
    in_percent: bool = True
    exponential: bool = False
    is_error: bool = False

    @property
    def columns(self) -> tuple[Floats, ...]:
        """Numerators and denominators."""
        return self.numerators, self.denominators

    @property
    def higher_is_better(self) -> bool:
        """Whether a better model has a higher figure: of all but perplexity and errors."""
        return not (self.exponential or self.is_error)

    @property
    def digits(self) -> int:
        """Two in percent and of a perplexity, else four."""
        return 2 if self.in_percent or self.exponential else 4

    def figures(self, *columns: Floats, axis: int = -1) -> Floats:
        """Return the ratios of the sums."""
        numerators, denominators = columns
        return self.of(numerators.sum(axis=axis), denominators.sum(axis=axis))

    def of(self, numerators: Floats, denominators: Floats) -> Floats:
        """Return the figures of sums over samples of the examples."""
        ratio = np.divide(
            numerators, denominators, out=np.zeros_like(numerators, dtype=np.float64), where=denominators != 0
        )
        if self.exponential:
            return np.exp(ratio)
        return 100 * ratio if self.in_percent else ratio


@dataclass(frozen=True)
class Correlation(Metric):
    """The correlation of predicted numbers with the true ones, from -1 to 1; 0 where either are all equal.

    Of several numbers for an example it is the mean over them.

    Attributes:
        predicted: What a model gave, shape `(examples, numbers)`.
        true: What it should have given, of the same shape.
        of_ranks: Whether it is Spearman's, that of the ranks, and not Pearson's.
    """

    predicted: Floats
    true: Floats
    of_ranks: bool = False

    @property
    def columns(self) -> tuple[Floats, ...]:
        """A column of predicted numbers and one of true ones, for each number in turn."""
        return tuple(column for pair in zip(self.predicted.T, self.true.T, strict=True) for column in pair)

    def figures(self, *columns: Floats, axis: int = -1) -> Floats:
        """Return the correlations."""
        centred = [self._centred(column, axis) for column in columns]
        found = [_cosine(one, other, axis) for one, other in zip(centred[::2], centred[1::2], strict=True)]
        correlation: Floats = np.mean(found, axis=0)
        return correlation

    def _centred(self, column: Floats, axis: int) -> Floats:
        values = rankdata(column, axis=axis) if self.of_ranks else column.astype(np.float64)
        # Less the first one, so that of equal numbers exactly nothing is left.
        values = values - np.take(values, [0], axis=axis)
        centred: Floats = values - values.mean(axis=axis, keepdims=True)
        return centred


def _cosine(one: Floats, other: Floats, axis: int) -> Floats:
    products = np.asarray((one * other).sum(axis=axis))
    lengths = np.sqrt((one**2).sum(axis=axis) * (other**2).sum(axis=axis))
    cosine: Floats = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosine


def mean(name: str, values: Sequence[float], in_percent: bool = True, is_error: bool = False) -> Ratio:
    """Return the mean of a value that every example has."""
    numerators = np.array(values, dtype=np.float64)
    return Ratio(name, numerators, np.ones_like(numerators), in_percent, is_error=is_error)


def accuracy(outputs: Sequence[Arrays], labels: Sequence[int | None]) -> Ratio:
    """Return how often the highest of the `logits` is the label's."""
    right = [np.argmax(output["logits"]) == label for output, label in zip(outputs, labels, strict=True)]
    return mean("accuracy", [float(one) for one in right])


def label_metrics(outputs: Sequence[Arrays], labels: Sequence[Sequence[float]]) -> list[Metric]:
    """Return how many examples have all labels right, and the micro F1 over all labels.

    The F1 is 2 * TP / (predicted + true), whose sums are over examples; a label is predicted where its
    probability is above one half.
    """
    found = _numbers([output["logits"] for output in outputs]) > 0
    true = np.array(labels) > 0.5
    twice_right = 2.0 * (found & true).sum(axis=1)
    counts = (found.sum(axis=1) + true.sum(axis=1)).astype(np.float64)
    exact = mean("all labels right", (found == true).all(axis=1).astype(np.float64).tolist())
    return [exact, Ratio("micro F1", twice_right, counts)]


def check_scores(true: Sequence[Sequence[float]]) -> None:
    """Find out before the work whether predicted numbers can be judged by these.

    Raises:
        DataError: If they are all equal, of which no correlation could tell models apart.
    """
    wanted = _numbers(true)
    if (wanted == wanted[0]).all():
        labels = f"All {len(wanted)} labels are" if len(wanted) > 1 else "The only label is"
        raise DataError(
            f"{labels} {', '.join(f'{number:g}' for number in wanted[0])}, and nothing "
            "correlates with that. Take data whose scores differ, or data without labels to compare models "
            "with the first one."
        )


def score_metrics(outputs: Sequence[Arrays], true: Sequence[Sequence[float]]) -> list[Metric]:
    """Return the mean squared error of predicted numbers, and Pearson's and Spearman's correlation.

    Raises:
        DataError: If the true numbers are all equal, of which no correlation could tell models apart.
    """
    check_scores(true)
    predicted, wanted = _numbers([output["logits"] for output in outputs]), _numbers(true)
    errors = mean("MSE", ((predicted - wanted) ** 2).mean(axis=1).tolist(), in_percent=False, is_error=True)
    return [
        errors,
        Correlation("Pearson", predicted, wanted),
        Correlation("Spearman", predicted, wanted, of_ranks=True),
    ]


def _numbers(rows: Sequence[Any]) -> Floats:
    return np.stack([np.atleast_1d(np.asarray(row, dtype=np.float64)) for row in rows])
