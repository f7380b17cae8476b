"""What an evaluation found: as data, and as data for JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from qdqpatch.engines.exactness import Exactness
from qdqpatch.engines.loading import Skipped
from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Difference, interval
from qdqpatch.tasks.metrics import Metric, decimal


@dataclass(frozen=True)
class Figure:
    """A metric with its 95% confidence interval; None where there is none."""

    metric: Metric
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, metric: Metric, seed: int = 0) -> Figure:
        """Compute the interval."""
        return cls(metric, interval(metric, seed))

    def to_dict(self) -> dict[str, Any]:
        """Return value and interval as data for JSON."""
        return {
            "value": self.metric.value,
            "interval": None if self.interval is None else list(self.interval),
        }

    def __str__(self) -> str:
        """Return value and interval with the metric's digits."""
        ends = ", ".join(decimal(end, self.metric.digits) for end in self.interval or ())
        return f"{self.metric} [{ends}]" if ends else str(self.metric)


@dataclass(frozen=True)
class EvaluationRow:
    """A model in an engine.

    Attributes:
        model: What the table calls the model.
        engine: What it ran in.
        path: What the engine loaded.
        metrics: All of the task's, by name.
        difference: Of the main metric to that of the first row; None in the first row.
        seconds: How long the model ran on all of the data.
        note: What a reader of the figures has to know.
        closeness: How close the outputs are to the first row's, whatever labels say; the main figure last.
        exactness: Whether an exported file gives a text the same alone and in a batch; None where that is
            not asked.
    """

    model: str
    engine: str
    path: str
    metrics: dict[str, Metric]
    difference: Difference | None
    seconds: float
    note: str | None = None
    closeness: tuple[Figure, ...] = ()
    exactness: Exactness | None = None

    @property
    def name(self) -> str:
        """Model and engine."""
        return f"{self.model} in {self.engine}"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as data for JSON."""
        compared = self.difference
        return {
            "model": self.model,
            "engine": self.engine,
            "path": self.path,
            "metrics": {name: metric.value for name, metric in self.metrics.items()},
            "difference": None if compared is None else compared.value,
            "interval": None if compared is None or compared.interval is None else list(compared.interval),
            "drop_percent": None if compared is None else compared.drop,
            "seconds": self.seconds,
            "note": self.note,
            "closeness": {figure.metric.name: figure.to_dict() for figure in self.closeness},
            "exactness": None if self.exactness is None else dataclasses.asdict(self.exactness),
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything that was evaluated.

    Attributes:
        task: The task.
        data: Where the examples are from.
        examples: How many there were.
        metric: The name of the main metric.
        rows: In the order of the models.
        skipped: What the engines could not load.
        labelled: Whether the metrics are by labels; if not, the models are compared with the first one.
    """

    task: str
    data: str
    examples: int
    metric: str
    rows: tuple[EvaluationRow, ...]
    skipped: tuple[Skipped, ...] = ()
    labelled: bool = True

    def behind(self, percent: float) -> list[EvaluationRow]:
        """Return the rows whose main metric is worse than the first one's by more than so many percent.

        Raises:
            ConfigError: If the first one's is 0, of which nothing can be a percentage.
        """
        first = self.rows[0].metrics[self.metric]
        if not first.value:
            raise ConfigError(
                f"{self.rows[0].name} has {self.metric} {first}, of which nothing can be a percentage. Check "
                "that model and data belong together, or take more examples."
            )
        return [row for row in self.rows if row.difference and (row.difference.drop or 0) > percent]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON."""
        return {
            "task": self.task,
            "data": self.data,
            "examples": self.examples,
            "labelled": self.labelled,
            "metric": self.metric,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "results": [row.to_dict() for row in self.rows],
            "skipped": [dataclasses.asdict(skipped) for skipped in self.skipped],
        }
