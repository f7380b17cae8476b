"""Judging models on texts not seen before: every rung in the engine, units to leave in float in torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from qdqpatch.data.arrays import Arrays
from qdqpatch.evaluation.predicting import Run, predict, torch_run
from qdqpatch.optimizing.budget import Budget, Judged
from qdqpatch.sensitivity.criteria import Judgement
from qdqpatch.tasks.base import Feature, Task
from qdqpatch.tasks.metrics import Metric


@dataclass(frozen=True)
class HeldBack:
    """Texts that no rung has seen, with what the float model makes of them.

    Attributes:
        task: The model's task.
        examples: What was read.
        features: Their sequences.
        expected: The float model's outputs, as the task keeps them.
        labelled: Whether the examples have labels that the task's metric is of.
        budget: What is asked for.
        batch_size: How many sequences run at once.
    """

    task: Task[Any]
    examples: Sequence[Any]
    features: Sequence[Feature]
    expected: Sequence[Arrays]
    labelled: bool
    budget: Budget
    batch_size: int

    def judge(self, outputs: Sequence[Arrays]) -> Judged:
        """Judge a model by its outputs; one that gives NaN lacks infinitely much."""
        close = self.task.closeness(self.examples, outputs, self.expected)
        judged = self.budget.judge(close, self._metrics(outputs), self._metrics(self.expected))
        if any(np.isnan(value).any() for output in outputs for value in output.values()):
            return replace(judged, shortfall=math.inf, main=-math.inf)
        return judged

    def on(self, examples: Sequence[Any], run: Run) -> HeldBack:
        """Return the same judge on other examples, of which `run` gives what the float model makes."""
        features = self.task.features(examples)
        expected = predict(run, self.task, features, self.batch_size)
        return replace(self, examples=examples, features=features, expected=expected)

    def _metrics(self, outputs: Sequence[Arrays]) -> list[Metric]:
        if not self.labelled:
            return []
        return self.task.score(self.examples, self.features, outputs, self.expected)


class BudgetJudge:
    """Judges a model in torch by what it lacks of a budget: a drop of 0 is enough.

    Args:
        held: The texts.
        model: The model; it is judged as it is at each call.
    """

    higher_is_better = False
    reference = 0.0

    def __init__(self, held: HeldBack, model: PreTrainedModel) -> None:
        self._held, self._model = held, model
        self.name = "shortfall"

    def resolution(self) -> float | None:
        """Return None: what counts is the shortfall, which nothing is a percentage of."""
        return None

    def __call__(self) -> Judgement:
        """Run the model on the texts held back."""
        held = self._held
        outputs = predict(torch_run(self._model), held.task, held.features, held.batch_size)
        judged = held.judge(outputs)
        return Judgement(judged.shortfall, judged.shortfall)
