"""When a model is good enough: gates by what a head is for, or a drop that is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.bootstrap import difference
from qdqpatch.spelling import counted
from qdqpatch.tasks.agreement import CORRELATION, UNCHANGED
from qdqpatch.tasks.fill_mask import RELATIVE
from qdqpatch.tasks.head import Meaning
from qdqpatch.tasks.metrics import Metric
from qdqpatch.tasks.neighbours import COSINE, KEPT, LEAST
from qdqpatch.tasks.ranking import TAU


@dataclass(frozen=True)
class Gate:
    """What a figure must reach.

    Attributes:
        figure: The name of a metric that says how close a model is to the float one.
        limit: The worst value that is allowed; whether that is the least or the most, the metric knows.
    """

    figure: str
    limit: float


GATES: dict[Meaning, tuple[Gate, ...]] = {
    "states": (Gate(COSINE, 0.995), Gate(KEPT, 95.0)),
    "classes": (Gate(UNCHANGED, 99.0), Gate(RELATIVE, 1.02)),
    "labels": (Gate(UNCHANGED, 99.0),),
    "scores": (Gate(TAU, 0.97), Gate(CORRELATION, 0.998)),
    "positions": (Gate(UNCHANGED, 97.0),),
}
"""What is asked for unless told otherwise, as far as a head and the data give such a figure."""

AT_MOST = (RELATIVE,)
"""Figures whose limit is the most that is allowed; of the others it is the least."""

PERFECT = {UNCHANGED: 100.0}
"""Figures that are not 1 where two models are the same."""


@dataclass(frozen=True)
class Judged:
    """How far a model is from a budget.

    Attributes:
        figures: The figures that count, by name.
        shortfall: How much is missing, in percent of what is asked for, over all gates; 0 if nothing is, and
            infinite if a figure is NaN.
        main: The main figure of them, as a share of what it could be at best: to choose between two models
            that both lack nothing.
    """

    figures: Mapping[str, Metric]
    shortfall: float
    main: float

    @property
    def passes(self) -> bool:
        """Whether nothing is missing."""
        return self.shortfall <= 0


@dataclass(frozen=True)
class Budget:
    """What is asked for.

    Attributes:
        meaning: What the head's output means.
        max_drop: How much worse the main metric may be, in percent: of labels where there are any, else of
            how close outputs are. None for `GATES`.

    Raises:
        ConfigError: If the drop is no number of at least 0.
    """

    meaning: Meaning
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is None:
            return
        if not isinstance(self.max_drop, int | float) or not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"max_drop must be a number of at least 0, not {self.max_drop!r}.")

    def judge(
        self, closeness: Sequence[Metric], labels: Sequence[Metric] = (), reference: Sequence[Metric] = ()
    ) -> Judged:
        """Judge a model.

        Args:
            closeness: How close it is to the float one, the main figure last.
            labels: Its metrics by labels, the main one last; none where there are no labels.
            reference: The float model's metrics by labels.

        Raises:
            ConfigError: If there is nothing to go by.
        """
        if not closeness and (self.max_drop is None or not labels):
            raise ConfigError(
                "The float model gives the same score for all texts held back, so that nothing can be told: "
                "hold back more of them."
            )
        close = {metric.name: metric for metric in closeness}
        if self.max_drop is not None:
            main = (labels or closeness)[-1]
            drop = _drop(labels[-1], reference[-1]) if labels else _apart(closeness[-1])
            return Judged({main.name: main}, _known(max(drop - self.max_drop, 0.0)), -_known(drop))
        asked = [gate for gate in GATES[self.meaning] if gate.figure in close]
        missing = [_missing(close[gate.figure], gate.limit) for gate in asked]
        figures = {gate.figure: close[gate.figure] for gate in asked}
        if labels:
            figures[labels[-1].name] = labels[-1]
        return Judged(figures, _known(sum(missing)), -_known(_apart(closeness[-1])))

    def resolution(self, examples: int, figures: Collection[str] = ()) -> str | None:
        """Return what is to be said where so few examples cannot tell whether it is met; None if they can.

        Args:
            examples: How many there are.
            figures: The names of the figures that count.
        """
        asked = {gate.figure for gate in GATES[self.meaning]}
        if self.max_drop is None and KEPT in asked - set(figures) and COSINE in figures:
            return (
                f"{counted(examples, 'text')} held back cannot tell how many neighbours are kept, which "
                f"takes {LEAST}: only the cosine was judged. Give more texts."
            )
        shares = [100 - gate.limit for gate in GATES[self.meaning] if gate.figure == UNCHANGED]
        if not shares or RELATIVE in figures:  # cosines, scores and perplexities are no counts
            return None
        percent = shares[0] if self.max_drop is None else self.max_drop
        if not percent or examples * percent >= 100:  # no number of examples resolves 0%
            return None
        return (
            f"{counted(examples, 'text')} held back cannot resolve {percent:g}%: one of them is "
            f"{100 / examples:.2g}%. Give more texts."
        )

    def asked(self, figures: Iterable[str]) -> str:
        """Return in words what is asked for of a head and data that give these figures."""
        if self.max_drop is not None:
            return f"a drop of at most {self.max_drop:g}%"
        names = {*figures}
        gates = (gate for gate in GATES[self.meaning] if gate.figure in names)
        return " and ".join(
            f"{gate.figure} of at {'most' if gate.figure in AT_MOST else 'least'} {gate.limit:g}"
            for gate in gates
        )


def _drop(metric: Metric, reference: Metric) -> float:
    drop = difference(reference, metric).drop
    if drop is None:
        raise ConfigError(
            f"The float model's {reference.name} on these examples is {reference}, of which nothing can be a "
            "percentage. Check that model and data belong together."
        )
    return drop


def _apart(metric: Metric) -> float:
    """Return how far the main figure is from that of two equal models, in percent."""
    perfect = PERFECT.get(metric.name, 1.0)
    apart = 100 * (perfect - metric.value) / perfect
    return apart if metric.higher_is_better else -apart


def _known(percent: float) -> float:
    """Return a percentage, infinite where it is NaN, which would be neither more nor less than another."""
    return math.inf if math.isnan(percent) else percent


def _missing(metric: Metric, limit: float) -> float:
    missing = limit - metric.value if metric.higher_is_better else metric.value - limit
    return 100 * max(missing, 0.0) / limit
