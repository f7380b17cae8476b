"""Climbing the ladder: rung by rung, each judged in the engine, until one meets the budget or time is up.

Several processes climb together: they share the texts, and go by the clock of the first, which also times.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.calibration.observing import HELD_BACK
from qdqpatch.calibration.ptq import ptq
from qdqpatch.calibration.weights import recalibrate_weights
from qdqpatch.config.config import QDQConfig
from qdqpatch.distributed import from_first, share
from qdqpatch.engines.sessions import Session
from qdqpatch.engines.shapes import Shape
from qdqpatch.errors import ConfigError, TrainingError
from qdqpatch.evaluation.predicting import batches, torch_run
from qdqpatch.listening import CalibrationListener
from qdqpatch.nn.pooling import SentenceHead
from qdqpatch.optimizing.engine import Place, latencies, outputs_in
from qdqpatch.optimizing.judging import BudgetJudge, HeldBack
from qdqpatch.optimizing.result import FLOAT, RungResult
from qdqpatch.optimizing.rungs import RUNGS, Kind, Rung, possible
from qdqpatch.output.temporary import temporary_folder
from qdqpatch.packages import missing, pip_install
from qdqpatch.patching.switch import switch_quantizers
from qdqpatch.sensitivity import measure, search
from qdqpatch.tasks.base import Feature, Task

ATTEMPTS = 4
"""So many models are tried when units are quantized again one by one: each runs all texts held back."""


@dataclass(frozen=True)
class Material:
    """What the rungs work with.

    Attributes:
        model: The float model, which stays as it is.
        task: Its task.
        calibration: The sequences to calibrate with and to distil on.
        choosing: The examples to choose by which units stay float.
        held: The texts held back.
        config: What is quantized.
        batch_size: How many sequences run at once.
        float_pass: Seconds that the float model takes for the calibration texts.
        head: What makes embeddings of the last hidden states; None for their mean.
        settings: What `ptq` is given from the first rung on.
    """

    model: PreTrainedModel
    task: Task[Any]
    calibration: Sequence[Feature]
    choosing: Sequence[Any]
    held: HeldBack
    config: QDQConfig
    batch_size: int
    float_pass: float
    head: SentenceHead | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Climb:
    """A climb under way.

    Attributes:
        rungs: What became of the rungs so far.
        best: The best model; None before the first one.
        settings: What it was made with.
        chosen: The rung that it is of.
    """

    rungs: list[RungResult] = field(default_factory=list)
    best: PreTrainedModel | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: str = ""
    _order: tuple[float, float] = (0.0, 0.0)

    @property
    def met(self) -> bool:
        """Whether the best model meets the budget."""
        return self.best is not None and self._order[0] <= 0

    def take(self, result: RungResult, model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
        """Keep a model if it is better than the best one so far: lacks less, or is as near and nearer."""
        self.rungs.append(result)
        assert result.judged is not None  # it was climbed
        order = (result.judged.shortfall, -result.judged.main)
        if self.best is None or order < self._order:
            self.best, self.settings, self.chosen = model, dict(settings), result.name
            self._order = order


def climb(
    material: Material,
    place: Place,
    seconds: float | None,
    shape: Shape,
    listener: CalibrationListener,
    rungs: tuple[Rung, ...] = RUNGS,
    clock: Callable[[], float] = time.monotonic,
) -> Climb:
    """Climb until a rung meets the budget, none is left, or the next one does not fit into the time.

    Args:
        material: What the rungs work with.
        place: Where models are judged.
        seconds: The time for everything; None for as long as it takes. The first rung is climbed in any case.
        shape: What is timed.
        listener: Is told how it goes on.
        rungs: The ladder.
        clock: Returns the time in seconds.

    Raises:
        UnsupportedModelError: If the model cannot be quantized as configured.
        ExportError: If a model cannot be exported.
        EngineError: If the engine refuses a file.
    """

    def now() -> float:
        """Return the time, in all processes the same, so that all decide alike."""
        return from_first(clock, material.model.device)

    started = now()
    switches = possible(material.model, material.config, rungs)
    found = Climb(settings=dict(material.settings))
    with temporary_folder() as folder:
        listener.say("Exporting the float model")
        float_session = place.write(material.model, folder / "float", True) if place.is_timed else None
        found.rungs.append(RungResult(FLOAT, now() - started, material.held.judge(material.held.expected)))
        overhead, slower = now() - started, 1.0
        for rung in rungs:
            own = {name: value for name, value in rung.switches.items() if name in switches}
            if reason := _unfit(rung, own, found, material):
                found.rungs.append(RungResult(rung.name, 0.0, note=reason))
                continue
            expected = overhead + slower * rung.passes * material.float_pass
            left = None if seconds is None else seconds - (now() - started)
            if found.best is not None and left is not None and expected > left:
                note = f"not begun: takes about {expected:.0f} s, and {max(left, 0):.0f} s are left"
                found.rungs.append(RungResult(rung.name, 0.0, note=note))
                continue
            begun = now()
            given = {**found.settings, **own}
            try:
                model = STEPS[rung.kind](material, found.best, given, listener)
            except (ConfigError, TrainingError) as error:
                if found.best is None:  # without ranges there is nothing to go on with
                    raise
                found.rungs.append(RungResult(rung.name, now() - begun, note=str(error)))
                continue
            made = now()
            slower = max(slower, (made - begun) / max(rung.passes * material.float_pass, 1e-9))
            listener.say(f"Judging in {place.engine.name}: {rung.name}")
            session = place.write(model, folder / f"{len(found.rungs)}")
            outputs = outputs_in(session, material.task, material.held.features, material.batch_size)
            judged = material.held.judge(outputs)
            speed = _timed(float_session, session, material.model, shape)
            overhead = max(overhead, now() - made)  # most have a trace that was made before
            found.take(RungResult(rung.name, now() - begun, judged, *speed), model, given)
            del session
            if found.met:
                break
    if float_session is not None and found.best is not None:
        _time_float(found)
    return found


def _unfit(rung: Rung, own: Mapping[str, Any], found: Climb, material: Material) -> str:
    """Return why a rung is not for this model; empty if it is."""
    if rung.switches and not own:
        return "nothing to do in this model"
    if rung.kind != "ptq" and found.best is None:
        return "needs a model to begin with"
    if rung.kind == "distillation" and "input_ids" not in material.calibration[0]:
        return "for texts alone"
    if rung.kind == "distillation" and missing("accelerate"):
        return f"needs accelerate: {pip_install('accelerate')}"
    return ""


def _timed(
    float_session: Session | None, session: Session, model: PreTrainedModel, shape: Shape
) -> tuple[float | None, float | None]:
    """Return speed-up and latency in ms; None where the engine is not the target's."""
    if float_session is None:
        return None, None
    before, own = from_first(lambda: latencies([float_session, session], model, shape), model.device)
    return before / own, 1000 * own


def _time_float(found: Climb) -> None:
    """Write the float model's latency into its row: that beside the chosen model."""
    best = next(rung for rung in found.rungs if rung.name == found.chosen)
    if best.latency_ms is not None and best.speedup is not None:
        first = found.rungs[0]
        latency = best.latency_ms * best.speedup
        found.rungs[0] = dataclasses.replace(first, speedup=1.0, latency_ms=latency)


def _calibrated(
    material: Material,
    best: PreTrainedModel | None,
    settings: Mapping[str, Any],
    listener: CalibrationListener,
) -> PreTrainedModel:
    model = copy.deepcopy(material.model)
    own = share(material.calibration, HELD_BACK * material.batch_size)
    data = batches(material.task, own, material.batch_size, model)
    return ptq(model, data, material.config, head=material.head, listener=listener, **settings)


def _with_float_units(
    material: Material,
    best: PreTrainedModel | None,
    settings: Mapping[str, Any],
    listener: CalibrationListener,
) -> PreTrainedModel:
    """Leave units in float: the costliest ones, as many as the budget takes on texts of their own."""
    model = copy.deepcopy(best)
    assert model is not None
    listener.say("Looking for units to leave in float")
    held = material.held.on(material.choosing, torch_run(material.model))

    def step(text: str, done: int, total: int) -> None:
        listener.step(done, total)

    costs = measure(model, held.task, held.examples, batch_size=held.batch_size, step=step)
    found = search(
        model,
        held.task,
        held.examples,
        costs,
        0.0,
        judge=BudgetJudge(held, model),
        attempts=ATTEMPTS,
        batch_size=held.batch_size,
        step=step,
    )
    if found.config is None:
        raise ConfigError("no unit can be quantized within the budget")
    units = {cost.unit.name: cost.unit for cost in costs.costs}
    off = {path: False for name in found.best.float_units for path in units[name].quantizers}
    return switch_quantizers(model, off) if off else model


def _distilled(
    material: Material,
    best: PreTrainedModel | None,
    settings: Mapping[str, Any],
    listener: CalibrationListener,
) -> PreTrainedModel:
    """Train the best model to give what the float one does, on the calibration texts alone."""
    from qdqpatch.training.distillation import Distillation
    from qdqpatch.training.fit import fit
    from qdqpatch.training.ranges import freeze_ranges, train_ranges
    from qdqpatch.training.schedule import Schedule

    model = copy.deepcopy(best)
    assert model is not None
    listener.say("Distilling")
    train_ranges(model)
    with temporary_folder() as folder:
        fit(
            model,
            material.calibration,
            material.task.collate,
            folder,
            Schedule(epochs=4, lr=1e-5, batch_size=material.batch_size),
            copy.deepcopy(material.model).eval(),
            Distillation(),
            step=lambda done, total, loss: listener.step(done, total),
            head=material.head,
        )
    return recalibrate_weights(freeze_ranges(model), settings.get("weight_method", "max"))


Step = Callable[[Material, PreTrainedModel | None, Mapping[str, Any], CalibrationListener], PreTrainedModel]

STEPS: dict[Kind, Step] = {
    "ptq": _calibrated,
    "float units": _with_float_units,
    "distillation": _distilled,
}
"""What makes the model of a rung."""
