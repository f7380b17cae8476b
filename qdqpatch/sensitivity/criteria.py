"""How much worse a model is than the float one: by the task's metric, or without labels by what changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qdqpatch.data.arrays import Arrays
from qdqpatch.distributed import gather, share
from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.bootstrap import difference, interval
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.sensitivity.cost import meaning, rows_of
from qdqpatch.sensitivity.subject import Subject
from qdqpatch.spelling import counted, form, spelled
from qdqpatch.tasks.agreement import UNCHANGED
from qdqpatch.tasks.head import predictions
from qdqpatch.tasks.metrics import Metric, mean


@dataclass(frozen=True)
class Judgement:
    """What a model is worth.

    Attributes:
        value: The figure.
        drop: How much worse than the float model's it is, in percent of that; below 0 if it is better.
    """

    value: float
    drop: float


class MetricJudge:
    """Judges by the task's main metric. Made while the model is the float one.

    Args:
        subject: The model, in eval mode, and examples. It is judged as it is at each call.
        labelled: Whether the examples have labels; if not, the metric is one that compares with the float
            model, such as the correlation of scores.

    Attributes:
        name: The metric's.
        higher_is_better: Whether it is of the common kind.
        reference: The float model's figure.

    Raises:
        ConfigError: If the float model's figure is 0, so that nothing can be a percentage of it.
    """

    def __init__(self, subject: Subject, labelled: bool = True) -> None:
        self._subject, self._labelled = subject, labelled
        self._outputs = self._predict()
        metric = self._metric(self._outputs)
        self.name, self.reference = metric.name, metric.value
        self.higher_is_better = metric.higher_is_better
        if not self.reference:
            count = len(subject.examples)
            these = f"{form(count, 'this', 'these')} {counted(count, 'example')}"
            raise ConfigError(
                f"The float model's {self.name} on {these} is 0, of which nothing can be a percentage. Check "
                "that model and data belong together, or take more "
                f"examples{spelled('', ' (--samples)')}."
            )

    def resolution(self) -> float | None:
        """Return half of the confidence interval of the drop of the model as it is, in percent."""
        own = self._metric(self._outputs)
        interval = difference(own, self._metric(self._predict())).interval
        return None if interval is None else 100 * (interval[1] - interval[0]) / 2 / abs(self.reference)

    def __call__(self) -> Judgement:
        """Run the model on all examples."""
        value = self._metric(self._predict()).value
        loss = self.reference - value if self.higher_is_better else value - self.reference
        return Judgement(value, 100 * loss / abs(self.reference))

    def _predict(self) -> list[Arrays]:
        subject = self._subject
        return predict(torch_run(subject.model), subject.task, subject.features, subject.batch_size)

    def _metric(self, outputs: list[Arrays]) -> Metric:
        subject = self._subject
        if not self._labelled:
            return subject.task.compare(outputs, self._outputs)[-1]
        return subject.task.score(subject.examples, subject.features, outputs, reference=self._outputs)[-1]


class ChangeJudge:
    """Judges by the share of predictions that are the float model's. Made while the model is that one.

    Args:
        subject: The model, in eval mode, and any examples. It is judged as it is at each call.

    Attributes:
        name: `UNCHANGED`.
        higher_is_better: True.
        reference: 100.
    """

    name = UNCHANGED
    higher_is_better = True
    reference = 100.0

    def __init__(self, subject: Subject) -> None:
        self._run, self._task = torch_run(subject.model), subject.task
        self._batches = subject.batches()
        self._expected = self._predict()

    def resolution(self) -> float | None:
        """Return half of the confidence interval of the share that changes, in percent."""
        changed = (self._predict() != self._expected).double()
        own = interval(mean(UNCHANGED, changed.tolist()))
        return None if own is None else max((own[1] - own[0]) / 2, 100 / len(changed))

    def __call__(self) -> Judgement:
        """Run the model on all features."""
        changed = (self._predict() != self._expected).double().mean().item()
        return Judgement(100 * (1 - changed), 100 * changed)

    def _predict(self) -> Tensor:
        """Return every prediction: the likeliest outcome of a distribution, or whether a label is likely."""
        chosen: dict[int, Tensor] = {}
        for number in share(range(len(self._batches))):
            batch, found_in = self._batches[number], []
            outputs = self._run(batch)
            for name in self._task.logits:
                rows = rows_of(name, outputs[name], self._task, batch.get("attention_mask"))
                found = predictions(meaning(name, outputs[name], self._task), rows)
                assert found is not None  # `make_judge` takes another judge for what predicts nothing
                found_in.append(found.flatten().cpu())
            chosen[number] = torch.cat(found_in)
        gathered = gather(chosen)
        return torch.cat([gathered[number] for number in range(len(self._batches))])


class Judge(Protocol):
    """Judges a model as it is at each call.

    Attributes:
        name: Of the figure.
        higher_is_better: Of it.
        reference: The float model's.
    """

    name: str
    higher_is_better: bool
    reference: float

    def __call__(self) -> Judgement:
        """Run the model on all examples."""

    def resolution(self) -> float | None:
        """Return how large a drop of the model as it is the examples tell from none, in percent, if known."""


def make_judge(subject: Subject, labelled: bool) -> Judge:
    """Return the judge that the examples allow, made of a model whose quantizers are all off.

    What predicts scores or vectors has nothing that is changed or not; the metrics of both that compare with
    the float model need no labels.
    """
    if labelled or not subject.task.needs_labels:
        return MetricJudge(subject)
    task, batch = subject.task, subject.batches()[0]
    output = torch_run(subject.model)(batch)[task.logits[0]]
    return (
        MetricJudge(subject, labelled=False)
        if meaning(task.logits[0], output, task) == "scores"
        else ChangeJudge(subject)
    )
