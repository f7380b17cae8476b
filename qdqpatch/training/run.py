"""The whole way from a checkpoint to a trained one: evaluate, calibrate, train, evaluate, save."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.calibration import ptq
from qdqpatch.calibration.observing import HELD_BACK
from qdqpatch.calibration.refining import can_refine
from qdqpatch.calibration.shifting import find_shifts
from qdqpatch.checkpoint.companions import Companions, read_companions
from qdqpatch.checkpoint.source import Checkpoint, open_checkpoint
from qdqpatch.checkpoint.tokenizer import load_tokenizer
from qdqpatch.data.arrays import Arrays
from qdqpatch.distributed import from_first, is_first, share
from qdqpatch.engines.device import fastest_device, to_fastest_device
from qdqpatch.errors import ConfigError, NoLabelsError, TrainingError, no_range
from qdqpatch.evaluation.predicting import batches, predict, torch_run
from qdqpatch.evaluation.shared_task import settle
from qdqpatch.listening import TrainingListener
from qdqpatch.output.folder import OutputFolder, failures_of_writing
from qdqpatch.output.record import write_record
from qdqpatch.patching.apply import enabled_quantizers, without_range
from qdqpatch.patching.quantize import dequantize, quantize
from qdqpatch.tasks import make_task
from qdqpatch.tasks.base import Feature, Task, draw
from qdqpatch.training.fit import fit
from qdqpatch.training.folder import REPORT_FILE, RunFolder
from qdqpatch.training.job import Job, Stage, TrainingReport
from qdqpatch.training.ranges import train_ranges

CALIBRATION = 256
"""How many sequences a float checkpoint is calibrated with."""

HELD_OUT = 1000
"""At most so many examples are held out of the training data where there are none to evaluate on."""


def run_job(
    job: Job,
    out: Path,
    resume: bool = False,
    force: bool = False,
    listener: TrainingListener | None = None,
    inputs: Mapping[str, Path | None] | None = None,
) -> TrainingReport:
    """Train a checkpoint and save the trained one, with a report of what each stage gained.

    Checkpoints of the run are kept in a folder beside `out`, `OUT.training`, until it is done. Under
    `torchrun` and its like the processes share the data, and the first one writes; a step takes a batch of
    each.

    Args:
        job: What to do.
        out: The folder to write; it is complete or not there.
        resume: Whether to go on with an interrupted run of the same job.
        force: Whether `out`, or an interrupted run, may be replaced.
        listener: Is told how it goes on.
        inputs: What else must stay, by what it is called, such as the file that `job.config` is from.

    Raises:
        CheckpointError: If a checkpoint cannot be read or `out` not be written, or there is nothing to go on
            with.
        ConfigError: If the job's parts do not fit each other, or the interrupted run was another job.
        DataError: If something is wrong in the data.
        TrainingError: If it diverges. Then nothing of the run is kept.
    """
    read = {**_inputs(job), **(inputs or {})}
    found = from_first(lambda: _open_folders(job, out, read, resume, force), fastest_device())
    if isinstance(found, TrainingReport):
        return found
    output, folder = found
    listener = TrainingListener() if listener is None else listener
    companions = read_companions(job.ckpt)
    source, task = _open(job, companions)
    listener.say("Reading the data")
    data = _read(job, task)
    if data.unlabelled is not None:
        listener.warn(f"Without labels, models are compared with the float one. ({data.unlabelled})")
    listener.say(f"Loading {job.ckpt}")
    model, teacher = _build(job, source, task.has_loss, listener)
    run = _Run(job, folder.path, listener, task, data, model, teacher)
    if folder.stages is None:
        run.calibrate(source.quantization is None)
        if is_first():
            folder.begin(run.model, run.report.stages)
    with folder.held() if is_first() else nullcontext():
        checkpoint = None
        if folder.stages is not None:
            run.report.stages = folder.stages
            checkpoint = folder.checkpoint
            run.load(checkpoint or folder.calibrated)
        try:
            with failures_of_writing(folder.name):
                run.train(checkpoint)
        except TrainingError:
            if is_first():
                folder.remove()  # a lower rate is another job, which could not go on with it
            raise
        if not is_first():
            return run.report
        with output.staged() as staging:
            run.model.save_pretrained(staging)
            companions.copy(staging)
            training = {stage.name: stage.metrics for stage in run.report.stages}
            write_record(run.model, staging, training=training, data={"name": job.data.name})
            written = {"run": folder.id, "job": job.to_dict(), **run.report.to_dict()}
            (staging / REPORT_FILE).write_text(json.dumps(written, indent=2), encoding="utf-8")
        if (left := folder.remove()) is not None:
            listener.warn(left)
    return run.report


def _open_folders(
    job: Job, out: Path, read: dict[str, Any], resume: bool, force: bool
) -> TrainingReport | tuple[OutputFolder, RunFolder]:
    """Return what is to be written, or the report of a run that had written all of it."""
    folder = None
    if resume:
        folder = RunFolder.open(job, out, read, resume, force)
        if (report := folder.finished()) is not None:
            folder.remove()
            return report
    output = OutputFolder.open(out, read, force)
    return output, folder or RunFolder.open(job, out, read, resume, force)


def _inputs(job: Job) -> dict[str, str | None]:
    """Return what the job reads, which must stay whatever is replaced."""
    return {
        "the checkpoint": job.ckpt,
        "the data": job.data.name,
        "the data to evaluate on": None if job.eval_data is None else job.eval_data.name,
        "the teacher": job.teacher,
    }


def _open(job: Job, companions: Companions) -> tuple[Checkpoint, Task[Any]]:
    """Return the checkpoint, which is not loaded yet, and the task, if the job's parts fit each other."""
    source = open_checkpoint(job.ckpt, job.task)
    if source.quantization is not None and job.config is not None:
        raise ConfigError(
            f"{job.ckpt} is quantized already: leave out what is to be quantized, or train the float one."
        )
    if job.teacher is not None:
        _check_teacher(job, job.teacher, source)
    tokenizer = load_tokenizer(job.ckpt)
    task = make_task(job.task, tokenizer, source.config, job.max_length, job.options, companions)
    if job.distillation is None and not task.has_loss:
        raise ConfigError(f"A model for {task.name} has no loss: train it with --distill.")
    return source, task


def _check_teacher(job: Job, teacher: str, student: Checkpoint) -> None:
    source = open_checkpoint(teacher, job.task)
    if source.quantization is not None:
        raise ConfigError(f"The teacher {teacher} is quantized: name the float checkpoint.")
    ours, theirs = (each.model_class.__name__ for each in (student, source))
    if ours != theirs:
        raise ConfigError(
            f"The teacher {teacher} is a {theirs} and {job.ckpt} a {ours}: both need the same head."
        )
    settle([job.ckpt, teacher], job.task)  # they need the same labels and vocabulary, too


@dataclass(frozen=True)
class _Data:
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
    unlabelled: NoLabelsError | None = None


def _read(job: Job, task: Task[Any]) -> _Data:
    """Read the data, hold out what there is to evaluate on, and tokenize."""
    seed = job.schedule.seed
    by_labels = job.distillation is None or job.distillation.labels > 0
    unlabelled = None
    if by_labels or job.eval_data is not None:
        examples = task.read(job.data, by_labels)
    else:
        examples, unlabelled = task.read_any(job.data)
    if job.eval_data is None:
        if len(examples) < 2:
            raise ConfigError(f"{job.data.name} has one example: give others to evaluate on (--eval-data).")
        places = draw(range(len(examples)), min(HELD_OUT, max(1, len(examples) // 10)), seed)
        out = set(places)
        to_evaluate = [examples[place] for place in places]
        examples = [example for place, example in enumerate(examples) if place not in out]
    else:
        to_evaluate, unlabelled = task.read_any(job.eval_data)
    to_evaluate = draw(to_evaluate, job.eval_samples)
    eval_features = task.features(to_evaluate)
    # Masked language modelling makes labels of its own.
    features = task.features(examples, training=by_labels or not task.needs_labels, seed=seed)
    return _Data(features, to_evaluate, eval_features, unlabelled)


def _build(
    job: Job, source: Checkpoint, has_loss: bool, listener: TrainingListener
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load the checkpoint, and return the quantized model and the float one, to compare with and distil."""
    # A new head can learn from labels, but not from a teacher that has none either.
    model, missing = source.load(fresh_head=job.distillation is None)
    to_fastest_device(model)
    if missing and has_loss:
        listener.warn(f"{job.ckpt} lacks these weights, which are random now: {', '.join(missing)}")
    if job.teacher is not None:
        teacher = to_fastest_device(open_checkpoint(job.teacher, job.task).load()[0])
    else:
        twin = copy.deepcopy(model)
        teacher = twin if source.quantization is None else dequantize(twin)
    if source.quantization is None:
        quantize(model, job.config)
    elif unset := without_range(enabled_quantizers(model)):
        remedy = "Convert it again with --calib, or train the float checkpoint."
        raise ConfigError(f"{job.ckpt} is not calibrated: {no_range(unset, remedy)}")
    return model, teacher.eval()


class _Run:
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
        data: _Data,
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
        chosen = draw(self._data.features, CALIBRATION, job.schedule.seed)
        ptq(
            self.model,
            batches(self._task, share(chosen, HELD_BACK * job.schedule.batch_size), job.schedule.batch_size),
            method=job.method,
            shift=job.shift and bool(find_shifts(self.model)),
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
        self._listener.say(f"Training on {len(self._data.features)} sequences")
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
