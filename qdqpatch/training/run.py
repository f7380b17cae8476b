"""The whole way from a checkpoint to a trained one: evaluate, calibrate, train, evaluate, save."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

from transformers import PreTrainedModel

from qdqpatch.calibration import calibrate, refine_ranges, shift
from qdqpatch.calibration.refining import can_refine
from qdqpatch.calibration.shifting import find_shifts
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.checkpoint.tokenizer import copy_tokenizer, load_tokenizer
from qdqpatch.data.arrays import Arrays
from qdqpatch.engines.device import to_fastest_device
from qdqpatch.errors import ConfigError
from qdqpatch.evaluation.predicting import batches, predict, torch_run
from qdqpatch.output.folder import OutputFolder, failures_of_writing
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.patching.quantize import dequantize, quantize
from qdqpatch.tasks import make_task
from qdqpatch.tasks.base import Feature, draw
from qdqpatch.training.fit import fit
from qdqpatch.training.folder import REPORT_FILE, RunFolder
from qdqpatch.training.job import Job, Stage, TrainingReport
from qdqpatch.training.ranges import train_ranges

CALIBRATION = 256
"""How many sequences a float checkpoint is calibrated with."""

HELD_OUT = 1000
"""At most so many examples are held out of the training data where there are none to evaluate on."""


class Listener:
    """Is told how a job goes on; this one ignores it."""

    def say(self, text: str) -> None:
        """Take a line about the step that begins."""

    def warn(self, text: str) -> None:
        """Take what a user should know though the job goes on."""

    def step(self, done: int, total: int, loss: float | None = None) -> None:
        """Take how far that step is."""


def run_job(
    job: Job, out: Path, resume: bool = False, force: bool = False, listener: Listener | None = None
) -> TrainingReport:
    """Train a checkpoint and save the trained one, with a report of what each stage gained.

    Checkpoints of the run are kept in a folder beside `out`, `OUT.training`, until it is done.

    Args:
        job: What to do.
        out: The folder to write; it is complete or not there.
        resume: Whether to go on with an interrupted run of the same job.
        force: Whether `out`, or an interrupted run, may be replaced.
        listener: Is told how it goes on.

    Raises:
        CheckpointError: If a checkpoint cannot be read or `out` not be written, or there is nothing to go on
            with.
        ConfigError: If the job's parts do not fit each other, or the interrupted run was another job.
        DataError: If something is wrong in the data.
    """
    inputs = _inputs(job)
    folder = None
    if resume:
        folder = RunFolder.open(job, out, inputs, resume, force)
        if (report := folder.finished()) is not None:
            folder.remove()
            return report
    output = OutputFolder.open(out, inputs, force)
    folder = folder or RunFolder.open(job, out, inputs, resume, force)
    listener = listener or Listener()
    run = _Run(job, folder.path, listener)
    if folder.stages is None:
        run.calibrate()
        folder.begin(run.model, run.report.stages)
    with folder.held():
        checkpoint = None
        if folder.stages is not None:
            run.report.stages = folder.stages
            checkpoint = folder.checkpoint
            run.load(checkpoint or folder.calibrated)
        with failures_of_writing(folder.name):
            run.train(checkpoint)
        with output.staged() as staging:
            run.model.save_pretrained(staging)
            copy_tokenizer(job.ckpt, staging)
            written = {"run": folder.id, "job": job.to_dict(), **run.report.to_dict()}
            (staging / REPORT_FILE).write_text(json.dumps(written, indent=2), encoding="utf-8")
        if (left := folder.remove()) is not None:
            listener.warn(left)
    return run.report


def _inputs(job: Job) -> dict[str, str | None]:
    """Return what the job reads, which must stay whatever is replaced."""
    return {
        "the checkpoint": job.ckpt,
        "the data": job.data.name,
        "the data to evaluate on": None if job.eval_data is None else job.eval_data.name,
        "the teacher": job.teacher,
    }


class _Run:
    """A job under way.

    Attributes:
        model: The model to train.
        report: What came of it up to now.
    """

    def __init__(self, job: Job, folder: Path, listener: Listener) -> None:
        self._job, self._folder, self._listener = job, folder, listener
        source = open_checkpoint(job.ckpt, job.task)
        self._is_float = source.quantization is None
        if not self._is_float and job.config is not None:
            raise ConfigError(
                f"{job.ckpt} is quantized already: leave out what is to be quantized, or train the float one."
            )
        tokenizer = load_tokenizer(job.ckpt)
        self._task = make_task(job.task, tokenizer, source.config, job.max_length, job.options)
        has_loss = self._task.has_loss
        if job.distillation is None and not has_loss:
            raise ConfigError(f"A model for {self._task.name} has no loss: train it with --distill.")
        self._read()
        listener.say(f"Loading {job.ckpt}")
        self.model, missing = source.load()
        to_fastest_device(self.model)
        if missing and has_loss:
            listener.warn(f"{job.ckpt} lacks these weights, which are random now: {', '.join(missing)}")
        self._teacher = self._float_model()
        if self._is_float:
            quantize(self.model, job.config)
        elif unset := [
            path for path, quantizer in enabled_quantizers(self.model).items() if quantizer.amax is None
        ]:
            raise ConfigError(
                f"{job.ckpt} is not calibrated: {len(unset)} quantizers have no range. Convert it again with "
                "--calib, or train the float checkpoint."
            )

    def _read(self) -> None:
        """Read the data, hold out what there is to evaluate on, and tokenize."""
        job, task = self._job, self._task
        self._listener.say("Reading the data")
        labelled = job.eval_data is None or job.distillation is None or job.distillation.labels > 0
        examples = task.read(job.data, labelled)
        if job.eval_data is None:
            if len(examples) < 2:
                raise ConfigError(
                    f"{job.data.name} has one example: give others to evaluate on (--eval-data)."
                )
            places = draw(range(len(examples)), min(HELD_OUT, max(1, len(examples) // 10)), job.schedule.seed)
            out = set(places)
            self._examples = [examples[each] for each in places]
            examples = [example for place, example in enumerate(examples) if place not in out]
        else:
            self._examples = task.read(job.eval_data)
        self._examples = draw(self._examples, job.eval_samples)
        self._eval_features = task.features(self._examples)
        # Masked language modelling makes labels of its own.
        self._features: list[Feature] = task.features(
            examples, training=labelled or not task.needs_labels, seed=job.schedule.seed
        )
        self.report = TrainingReport(len(self._examples), job.eval_data is None, features=len(self._features))

    def _float_model(self) -> PreTrainedModel:
        """Return the model to compare with and to distil from."""
        if self._job.teacher is None:
            twin = copy.deepcopy(self.model)
            floating = twin if self._is_float else dequantize(twin)
            floating.eval()
            return floating
        source = open_checkpoint(self._job.teacher, self._job.task)
        if source.quantization is not None:
            raise ConfigError(f"The teacher {self._job.teacher} is quantized: name the float checkpoint.")
        floating = to_fastest_device(source.load()[0])
        floating.eval()
        return floating

    def calibrate(self) -> None:
        """Set the ranges of a float checkpoint, and say what float and int8 are worth before training."""
        self._add("float", self._teacher)
        started = time.perf_counter()
        if self._is_float:
            self._set_ranges()
        self._add("calibrated", self.model, time.perf_counter() - started)

    def _set_ranges(self) -> None:
        """Calibrate; shift before and refine after where the model allows it."""
        job, listener = self._job, self._listener
        chosen = draw(self._features, CALIBRATION, job.schedule.seed)
        data = batches(self._task, chosen, job.schedule.batch_size)
        if job.shift and find_shifts(self.model):
            listener.say("Shifting")
            shift(self.model, data)
        listener.say("Calibrating")
        calibrate(self.model, data, job.method)
        if job.refine and can_refine(self.model):
            listener.say("Refining the ranges")
            refine_ranges(self.model, data, job.refine, step=listener.step)

    def load(self, folder: Path) -> None:
        """Take a model that the run has saved."""
        self.model = to_fastest_device(open_checkpoint(str(folder), self._job.task).load()[0])

    def train(self, checkpoint: Path | None = None) -> None:
        """Train; with the optimizer of a checkpoint of the run, if that is what the model is from."""
        job = self._job
        train_ranges(self.model, job.activations, job.weights)
        self._listener.say(f"Training on {len(self._features)} sequences")
        started = time.perf_counter()
        teacher = None if job.distillation is None else self._teacher
        self.report.loss = fit(
            self.model,
            self._features,
            self._task.collate,
            self._folder,
            job.schedule,
            teacher,
            job.distillation,
            checkpoint,
            self._listener.step,
        )
        name = "trained" if teacher is None else "distilled"
        self._add(name, self.model, time.perf_counter() - started)

    def _add(self, name: str, model: PreTrainedModel, seconds: float = 0.0) -> None:
        """Evaluate a model and write it into the report."""
        self._listener.say(f"Evaluating the {name} model")
        outputs = self._outputs(model)
        # Embeddings are worth what they are beside the float model's.
        reference = None if self._task.has_loss else self._outputs(self._teacher)
        metrics = self._task.score(self._examples, self._eval_features, outputs, reference)
        self.report.stages.append(Stage(name, {metric.name: metric.value for metric in metrics}, seconds))

    def _outputs(self, model: PreTrainedModel) -> list[Arrays]:
        return predict(torch_run(model.eval()), self._task, self._eval_features, step=self._listener.step)
