"""What quantizing each unit alone costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.distributed import share
from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.predicting import torch_run
from qdqpatch.sensitivity.cost import Cost, measure_of
from qdqpatch.sensitivity.criteria import MetricJudge
from qdqpatch.sensitivity.subject import Progress, Step, Subject, Switch, switching
from qdqpatch.sensitivity.units import Unit, find_units
from qdqpatch.tasks.base import Task


@dataclass(frozen=True)
class UnitCost:
    """A unit and what quantizing it alone costs."""

    unit: Unit
    cost: float


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing each unit alone costs.

    Attributes:
        measure: What the costs are, such as "KL divergence".
        examples: On how many examples they were measured.
        costs: By unit, costliest first.
    """

    measure: str
    examples: int
    costs: tuple[UnitCost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON."""
        units = [
            {
                "name": cost.unit.name,
                "kind": cost.unit.kind,
                "cost": cost.cost,
                "quantizers": list(cost.unit.quantizers),
            }
            for cost in self.costs
        ]
        return {"measure": self.measure, "examples": self.examples, "units": units}


def measure(
    model: PreTrainedModel,
    task: Task[Any],
    examples: Sequence[Any],
    *,
    by_metric: bool = False,
    batch_size: int = 16,
    step: Step = lambda text, done, total: None,
) -> Sensitivity:
    """Quantize one unit after the other, the rest in float, and compare the outputs with the float model's.

    The cost is the Kullback-Leibler divergence of the float model's distribution from that of the model
    with the unit quantized, in nats: over the classes, for question answering over the positions of start
    and of end, which are added, or for each token, of which the mean is taken. Of a model with several
    labels it is that of every label, summed; of one that predicts scores, the mean squared difference; of one
    without a head, 1 - cosine of the mean of the last hidden states. None of these needs labels.

    Args:
        model: A quantized and calibrated model; it is left as it was, also if anything fails.
        task: The model's task.
        examples: What `task.read` gave.
        by_metric: Whether the cost is how much worse the task's main metric gets, in percent of the float
            model's, for which the examples need labels.
        batch_size: How many sequences run at once.
        step: Told of the progress.

    Returns:
        The costs; units of the same cost stay in the order of the model.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer, or was not quantized by qdqpatch.
        DataError: If there are no examples.
        ConfigError: If the metric of the float model is 0, or no unit changes any output.
    """
    subject = Subject.of(model, task, examples, batch_size)
    units = find_units(model)
    with switching(model) as only:
        name, costs = (_by_metric if by_metric else _by_outputs)(subject, units, only, step)
    ranked = sorted(map(UnitCost, units, costs), key=lambda unit: -unit.cost)
    return Sensitivity(name, len(examples), tuple(ranked))


def _by_outputs(subject: Subject, units: Sequence[Unit], only: Switch, step: Step) -> tuple[str, list[float]]:
    """Run each batch with every unit in turn, for the float logits of all would not fit into memory."""
    run = torch_run(subject.model)
    costs = [Cost(subject.task) for _ in units]
    batches = subject.batches()
    only(())
    name = measure_of(subject.task, run(batches[0]))
    own = share(batches)
    progress = Progress(step, len(own) * (1 + len(units)))
    for batch in own:
        only(())
        expected = run(batch)
        progress.advance("Ranking")
        for unit, cost in zip(units, costs, strict=True):
            only(unit.quantizers)
            cost.add(expected, run(batch), batch.get("attention_mask"))
            progress.advance("Ranking")
    for cost in costs:
        cost.merge(subject.model.device)
    found = [cost.value for cost in costs]
    if not any(found):
        raise ConfigError(
            f"No unit changes the outputs by anything when it is quantized, on {len(subject.examples)} "
            "examples, so that there is nothing to rank. Check that model and data belong together."
        )
    return name, found


def _by_metric(subject: Subject, units: Sequence[Unit], only: Switch, step: Step) -> tuple[str, list[float]]:
    progress = Progress(step, 1 + len(units))
    only(())
    judge = MetricJudge(subject)
    progress.advance("Ranking")
    costs = []
    for unit in units:
        only(unit.quantizers)
        costs.append(judge().drop)
        progress.advance("Ranking")
    return f"drop of {judge.name} in percent", costs
