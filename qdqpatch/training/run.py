"""The whole way from a checkpoint to a trained one: evaluate, calibrate, train, evaluate, save."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.checkpoint.companions import Companions, read_companions
from qdqpatch.checkpoint.source import Checkpoint, open_checkpoint
from qdqpatch.distributed import from_first, is_first
from qdqpatch.engines.device import fastest_device, to_fastest_device
from qdqpatch.errors import ConfigError, TrainingError, no_range
from qdqpatch.evaluation.shared_task import settle
from qdqpatch.listening import TrainingListener
from qdqpatch.output.folder import OutputFolder, failures_of_writing
from qdqpatch.output.record import write_record
from qdqpatch.packages import require
from qdqpatch.patching.apply import enabled_quantizers, without_range
from qdqpatch.patching.quantize import dequantize, quantize
from qdqpatch.spelling import spelled
from qdqpatch.tasks import task_beside
from qdqpatch.tasks.base import Task
from qdqpatch.training.folder import REPORT_FILE, RunFolder
from qdqpatch.training.job import Job, TrainingReport, of_calibration
from qdqpatch.training.reading import read_data
from qdqpatch.training.stages import Run


def run_job(
    job: Job,
    out: Path,
    resume: bool = False,
    force: bool = False,
    listener: TrainingListener | None = None,
    inputs: Mapping[str, Any] | None = None,
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
    require("Training", "accelerate", error=ConfigError)
    read = {**_inputs(job), **(inputs or {})}
    found = from_first(lambda: _open_folders(job, out, read, resume, force), fastest_device())
    if isinstance(found, TrainingReport):
        return found
    output, folder = found
    listener = TrainingListener() if listener is None else listener
    companions = read_companions(job.ckpt)
    source, task = _open(job, companions)
    listener.say("Reading the data")
    data = read_data(job, task)
    if data.unlabelled is not None:
        listener.warn(f"Models are compared with the float one, and judged by no labels. ({data.unlabelled})")
    listener.say(f"Loading {job.ckpt}")
    model, teacher = _build(job, source, task.has_loss, listener)
    run = Run(job, folder.path, listener, task, data, model, teacher)
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
    if source.quantization is not None and (unused := of_calibration(job)):
        raise ConfigError(
            f"{job.ckpt} is quantized already, and is trained with the ranges that it has: leave out "
            f"{', '.join(unused)}, or train the float one."
        )
    if job.teacher is not None:
        _check_teacher(job, job.teacher, source)
    task = task_beside(job.ckpt, job.task, source.config, job.max_length, job.options, companions)
    if job.distillation is None and not task.has_loss:
        raise ConfigError(f"A model for {task.name} has no loss: train it with {spelled('distillation')}.")
    source.check_weights(_may_lack_head(job))
    return source, task


def _may_lack_head(job: Job) -> bool:
    """Whether the head may be new: it can learn from labels, but not from a teacher that has none either."""
    return job.distillation is None


def _check_teacher(job: Job, teacher: str, student: Checkpoint) -> None:
    source = open_checkpoint(teacher, job.task)
    if source.quantization is not None:
        raise ConfigError(f"The teacher {teacher} is quantized: name the float checkpoint.")
    ours, theirs = (held.model_class.__name__ for held in (student, source))
    if ours != theirs:
        raise ConfigError(
            f"The teacher {teacher} is a {theirs} and {job.ckpt} a {ours}: both need the same head."
        )
    settle([job.ckpt, teacher], job.task)  # they need the same labels and vocabulary, too


def _build(
    job: Job, source: Checkpoint, has_loss: bool, listener: TrainingListener
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load the checkpoint, and return the quantized model and the float one, to compare with and distil."""
    model, missing = source.load(_may_lack_head(job))
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
        remedy = "Convert it again with texts, qdqpatch convert --calib, or train the float checkpoint."
        raise ConfigError(f"{job.ckpt} is not calibrated: {no_range(unset, remedy)}")
    return model, teacher.eval()
