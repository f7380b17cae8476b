"""A job under way: the float model, the calibrated one and the trained one, and what each is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.calibration import ptq
from qdqpatch.calibration.input_smoothing import can_smooth_inputs
from qdqpatch.calibration.observing import HELD_BACK
from qdqpatch.calibration.refining import can_refine
from qdqpatch.calibration.residual_smoothing import can_smooth_residuals
from qdqpatch.calibration.shifting import find_shifts
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.data.arrays import Arrays
from qdqpatch.distributed import share
from qdqpatch.engines.device import to_fastest_device
from qdqpatch.evaluation.predicting import batches, predict, torch_run
from qdqpatch.listening import TrainingListener
from qdqpatch.tasks.base import Task, draw
from qdqpatch.training.fit import fit
from qdqpatch.training.job import Job, Stage, TrainingReport
from qdqpatch.training.ranges import train_ranges
from qdqpatch.training.reading import Data

CALIBRATION = 256
"""How many sequences a float checkpoint is calibrated with."""


class Run:
    """A job under way.

    Args:
        job: What to do.
        folder: Where its checkpoints are kept meanwhile.
        listener: Is told how it goes on.
        task: The job's.
        data: What to train and evaluate on.
        model: The quantized model.
        teacher: The float one.

    Attributes:
        model: The model to train.
        report: What came of it up to now.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        listener: TrainingListener,
        task: Task[Any],
        data: Data,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
    ) -> None:
        self._job, self._folder, self._listener = job, folder, listener
        self._task, self._data = task, data
        self.model, self._teacher = model, teacher
        self.report = TrainingReport(len(data.examples), job.eval_data is None, features=len(data.features))

    def calibrate(self, is_float: bool) -> None:
        """Set the ranges of a float checkpoint, and say what float and int8 are worth before training."""
        self._add("float", self._teacher)
        started = time.perf_counter()
        if is_float:
            self._set_ranges()
        self._add("calibrated", self.model, time.perf_counter() - started)

    def _set_ranges(self) -> None:
        """Calibrate; shift before and refine after where the model allows it."""
        job = self._job
        is_embedder = not self._task.has_loss
        smooth_inputs = is_embedder if job.smooth_inputs is None else job.smooth_inputs
        smooth_residuals = is_embedder if job.smooth_residuals is None else job.smooth_residuals
        chosen = draw(self._data.features, CALIBRATION, job.schedule.seed)
        ptq(
            self.model,
            batches(
                self._task,
                share(chosen, HELD_BACK * job.schedule.batch_size),
                job.schedule.batch_size,
                self.model,
            ),
            method=job.method,
            shift=job.shift and bool(find_shifts(self.model)),
            smooth_inputs=smooth_inputs and can_smooth_inputs(self.model),
            smooth_residuals=smooth_residuals and can_smooth_residuals(self.model),
            refine=job.refine if can_refine(self.model) else 0,
            listener=self._listener,
        )

    def load(self, folder: Path) -> None:
        """Take a model that the run has saved."""
        self.model = to_fastest_device(open_checkpoint(str(folder), self._job.task).load()[0])

    def train(self, checkpoint: Path | None = None) -> None:
        """Train; with the optimizer of a checkpoint of the run, if that is what the model is from."""
        job = self._job
        train_ranges(self.model, job.activations, job.weights)
        self._listener.say(f"Training on {len(self._data.features)} {self._task.unit}")
        started = time.perf_counter()
        teacher = None if job.distillation is None else self._teacher
        self.report.loss = fit(
            self.model,
            self._data.features,
            self._task.collate,
            self._folder,
            job.schedule,
            teacher,
            job.distillation,
            checkpoint,
            self._listener.step,
            self._task.head,
        )
        name = "trained" if teacher is None else "distilled"
        self._add(name, self.model, time.perf_counter() - started)

    def _add(self, name: str, model: PreTrainedModel, seconds: float = 0.0) -> None:
        """Evaluate a model and write it into the report."""
        self._listener.say(f"Evaluating the {name} model")
        outputs = self._outputs(model)
        labelled = self._data.unlabelled is None
        # Embeddings are worth what they are beside the float model's, and so is all that has no labels.
        reference = None if labelled and self._task.has_loss else self._outputs(self._teacher)
        if labelled:
            metrics = self._task.score(self._data.examples, self._data.eval_features, outputs, reference)
        else:
            metrics = self._task.compare(outputs, reference)
        values = {metric.name: metric.value for metric in metrics}
        digits = {metric.name: metric.digits for metric in metrics}
        self.report.stages.append(Stage(name, values, seconds, digits))

    def _outputs(self, model: PreTrainedModel) -> list[Arrays]:
        return predict(
            torch_run(model.eval()), self._task, self._data.eval_features, step=self._listener.step
        )
