"""The smallest set of units to leave in float for a model to stay close to the float one."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.config.config import QDQConfig
from qdqpatch.errors import ConfigError
from qdqpatch.patching.placement import extended
from qdqpatch.sensitivity.criteria import Judge, make_judge
from qdqpatch.sensitivity.measure import Sensitivity
from qdqpatch.sensitivity.subject import Progress, Step, Subject, Switch, switching
from qdqpatch.sensitivity.units import Unit, find_units
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import Task

ATTEMPTS = 24
"""So many models are tried at most when units are quantized again one by one."""


@dataclass(frozen=True)
class Trial:
    """A model that was tried.

    Attributes:
        float_units: The names of the units that were in float.
        value: The metric.
        drop: How much worse than the float model's it is, in percent of that; below 0 if it is better.
    """

    float_units: tuple[str, ...]
    value: float
    drop: float


@dataclass(frozen=True)
class MixedPrecision:
    """What a search found.

    Attributes:
        metric: What was measured: the name of the task's main metric, `unchanged predictions`,
            or the correlation of scores with the float model's.
        higher_is_better: Of the metric.
        float_value: The float model's.
        max_drop: The drop that was allowed, in percent.
        examples: On how many examples it was measured.
        units: How many units the model has.
        trials: Everything that was tried, in that order.
        best: The trial whose drop is allowed and that leaves the fewest units in float. If none will do,
            that is the float model, which is not tried.
        config: The configuration that quantizes a float model so; None where no unit is left to quantize.
        resolution: How large a drop the examples can tell from none, in percent: half of the 95% confidence
            interval of the drop without units in float. None where the judge cannot say.
    """

    metric: str
    higher_is_better: bool
    float_value: float
    max_drop: float
    examples: int
    units: int
    trials: tuple[Trial, ...]
    best: Trial
    config: QDQConfig | None
    resolution: float | None = None

    @property
    def limit(self) -> float:
        """The worst value of the metric that is allowed."""
        loss = abs(self.float_value) * self.max_drop / 100
        return self.float_value - loss if self.higher_is_better else self.float_value + loss

    def to_dict(self) -> dict[str, Any]:
        """Return everything as data for JSON."""
        data = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in ("trials", "best", "config")
        }
        trials = [dataclasses.asdict(trial) for trial in self.trials]
        config = None if self.config is None else self.config.to_dict()
        return {**data, "best": dataclasses.asdict(self.best), "trials": trials, "config": config}


def search(
    model: PreTrainedModel,
    task: Task[Any],
    examples: Sequence[Any],
    sensitivity: Sensitivity,
    max_drop: float,
    *,
    labelled: bool = True,
    judge: Judge | None = None,
    attempts: int = ATTEMPTS,
    batch_size: int = 16,
    step: Step = lambda text, done, total: None,
) -> MixedPrecision:
    """Find few units whose floating point brings the task's main metric close enough to the float model's.

    The costliest units are left in float, as many as it takes, which is found by bisection. Then they are
    quantized again one by one, the cheapest first, where the metric allows it. Costs of units do not simply
    add up, so a smaller set that this does not find is possible.

    Args:
        model: A quantized and calibrated model; it is left as it was, also if anything fails.
        task: The model's task.
        examples: What `task.read` gave.
        sensitivity: What `measure` found for this model.
        max_drop: How much worse the metric may be, in percent of the float model's.
        labelled: Whether the examples have labels. If not, the share of predictions that are not the float
            model's counts instead, in percent; of scores, their correlation with the float model's.
        judge: Judges the model instead, by a drop of its own.
        attempts: How many models are tried at most when units are quantized again.
        batch_size: How many sequences run at once.
        step: Told of the progress.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer, or was not quantized by qdqpatch.
        DataError: If there are no examples.
        ConfigError: If `max_drop` is no number of at least 0, the costs are another model's, or the metric
            of the float model is 0.
    """
    if not 0 <= max_drop < math.inf:
        raise ConfigError(f"{spelled('max_drop')} must be a number of at least 0, not {max_drop}.")
    units = [cost.unit for cost in sensitivity.costs]
    if set(units) != set(find_units(model)):
        raise ConfigError("The costs are those of another model: measure this one.")
    subject = Subject.of(model, task, examples, batch_size)
    progress = Progress(step, 2 + math.ceil(math.log2(len(units) + 1)) + min(attempts, len(units)))
    with switching(model) as only:
        only(())
        judge = make_judge(subject, labelled) if judge is None else judge
        progress.advance("Searching")
        only([path for unit in units for path in unit.quantizers])
        resolution = judge.resolution()
        tries = _Tries(units, only, judge, progress)
        chosen = _costliest(tries, units, max_drop)
        chosen = _smaller(tries, chosen, max_drop, attempts)
    if len(chosen) == len(units):
        best, config = Trial(tuple(unit.name for unit in units), judge.reference, 0.0), None
    else:
        best = tries.of(chosen)
        overrides = [override for unit in chosen for override in unit.overrides]
        own: QDQConfig = model.config.quantization_config
        config = dataclasses.replace(own, overrides=extended(own, overrides))
    return MixedPrecision(
        metric=judge.name,
        higher_is_better=judge.higher_is_better,
        float_value=judge.reference,
        max_drop=max_drop,
        examples=len(examples),
        units=len(units),
        trials=tries.all,
        best=best,
        config=config,
        resolution=resolution,
    )


class _Tries:
    """Judges the model with some units in float, each choice once."""

    def __init__(self, units: Sequence[Unit], only: Switch, judge: Judge, progress: Progress) -> None:
        self._units, self._only, self._judge, self._progress = units, only, judge, progress
        self._found: dict[frozenset[Unit], Trial] = {}

    def of(self, float_units: Sequence[Unit]) -> Trial:
        key = frozenset(float_units)
        if key not in self._found:
            self._only([path for unit in self._units if unit not in key for path in unit.quantizers])
            judgement = self._judge()
            names = tuple(unit.name for unit in self._units if unit in key)
            self._found[key] = Trial(names, judgement.value, judgement.drop)
            self._progress.advance("Searching")
        return self._found[key]

    @property
    def all(self) -> tuple[Trial, ...]:
        return tuple(self._found.values())


def _costliest(tries: _Tries, units: Sequence[Unit], max_drop: float) -> list[Unit]:
    """Return as many of the costliest units as it takes, all of them if it takes the float model."""

    def will_do(count: int) -> bool:
        return tries.of(units[:count]).drop <= max_drop

    count = 0 if will_do(0) else bisect_left(range(len(units)), True, lo=1, key=will_do)
    return list(units[:count])


def _smaller(tries: _Tries, chosen: Sequence[Unit], max_drop: float, attempts: int) -> list[Unit]:
    """Return those of the units that have to stay in float, as far as the attempts reach."""
    before = len(tries.all)
    kept = list(chosen)
    for unit in reversed(chosen):
        if len(tries.all) - before >= attempts:
            break
        others = [other for other in kept if other is not unit]
        if tries.of(others).drop <= max_drop:
            kept = others
    return kept
