"""The data of a job: what is trained on, and what is held out to evaluate on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdqpatch.errors import ConfigError, DataError
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import Feature, Task, draw
from qdqpatch.training.job import Job

HELD_OUT = 1000
"""At most so many examples are held out of the training data where there are none to evaluate on."""


@dataclass(frozen=True)
class Data:
    """What a job is trained and evaluated on.

    Attributes:
        features: The sequences to train on.
        examples: The examples to evaluate on.
        eval_features: Their sequences.
        unlabelled: Why models are compared with the float one and not judged by labels; None if they are.
    """

    features: list[Feature]
    examples: list[Any]
    eval_features: list[Feature]
    unlabelled: DataError | None = None


def read_data(job: Job, task: Task[Any]) -> Data:
    """Read the data, hold out what there is to evaluate on, and tokenize."""
    seed = job.schedule.seed
    by_labels = job.distillation is None or job.distillation.labels > 0
    unlabelled: DataError | None = None
    if by_labels or job.eval_data is not None:
        examples = task.read(job.data, by_labels)
    else:
        examples, unlabelled = task.read_any(job.data)
    if job.eval_data is None:
        if len(examples) < 2:
            raise ConfigError(
                f"{job.data.name} has one example: give others to evaluate on, by {spelled('eval_data')}."
            )
        places = draw(range(len(examples)), min(HELD_OUT, max(1, len(examples) // 10)), seed)
        out = set(places)
        to_evaluate = [examples[place] for place in places]
        examples = [example for place, example in enumerate(examples) if place not in out]
    else:
        to_evaluate, unlabelled = task.read_any(job.eval_data)
    to_evaluate = draw(to_evaluate, job.eval_samples)
    if unlabelled is None:
        try:
            task.check_labels(to_evaluate)
        except DataError as error:
            if by_labels or job.eval_data is not None:
                raise
            unlabelled = error
    eval_features = task.features(to_evaluate)
    # Masked language modelling makes labels of its own.
    features = task.features(examples, training=by_labels or not task.needs_labels, seed=seed)
    return Data(features, to_evaluate, eval_features, unlabelled)
