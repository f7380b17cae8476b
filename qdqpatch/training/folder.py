"""The folder beside OUT that holds a run's checkpoints until it is done, and its state."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.errors import CheckpointError, ConfigError, InterruptedRunError
from qdqpatch.output.folder import OutputFolder, failures_of_writing
from qdqpatch.output.locks import acquire
from qdqpatch.output.manifest import has_manifest
from qdqpatch.output.work import clean_up
from qdqpatch.spelling import spelled
from qdqpatch.training.fit import last_checkpoint
from qdqpatch.training.job import Job, Stage, TrainingReport

JOB_FILE, REPORT_FILE = "job.json", "training.json"

OPTIONS = {
    "ckpt": "CKPT",
    "data.name": "--data",
    "eval_data.name": "--eval-data",
    "activations": "--activation-ranges",
    "weights": "--weight-ranges",
    "config": "--preset, --config and --override",
}
"""The options by which parts of a job are given, where their names are others."""

CALIBRATED = "calibrated"
"""The folder, in that of a run, of the model that training begins with."""

MODEL = r"config\.json|generation_config\.json|model[\w.-]*\.safetensors(\.index\.json)?|\.tmp\w+"
TRAINER = r"(optimizer|scheduler|scaler)\.pt|rng_state\w*\.pth|trainer_state\.json|training_args\.bin"
WRITTEN = re.compile(rf"job\.json|{CALIBRATED}/({MODEL})?|checkpoint-\d+/({MODEL}|{TRAINER})?")
"""What a run and the Trainer write."""


def folder_of(out: Path) -> Path:
    """Return the folder that holds the run of a job while it goes on."""
    real = out.resolve()
    place = real.parent / f"{real.name}.training"
    beside = out.parent / f"{out.name}.training"
    return beside if beside.resolve() == place else place


def can_resume(out: Path) -> bool:
    """Return whether there is a run that was interrupted in training, which can go on."""
    return (folder_of(out) / JOB_FILE).is_file()


@dataclass
class RunFolder:
    """The folder of a job's run.

    Attributes:
        job: The job.
        out: What the job writes in the end.
        name: The folder, as messages call it.
        id: Tells this run from others of the same job.
        stages: What the run that goes on has behind it; None if it begins anew.
    """

    job: Job
    out: Path
    name: Path
    id: str
    stages: list[Stage] | None
    _output: OutputFolder

    @classmethod
    def open(cls, job: Job, out: Path, inputs: dict[str, Any], resume: bool, force: bool) -> RunFolder:
        """Find out before the work whether the run can begin, or go on.

        Raises:
            InterruptedRunError: If there is an interrupted run, and neither `resume` nor `force` is set.
            CheckpointError: If the folder is not that of a run, is another process's, or cannot be written.
            ConfigError: If the interrupted run was another job.
        """
        name = folder_of(out)
        with failures_of_writing(name):
            path = name.resolve()
            clean_up(path.parent, path.name)  # puts a run back that was killed while it was removed
            clean_up(path)
        is_run = _is_run(name)
        if not is_run and resume:
            raise CheckpointError(f"There is no interrupted run in {name} to go on with.")
        also = WRITTEN if is_run else None
        output = OutputFolder.open(name, inputs, force=True, also=also)
        new = cls(job, out, name, secrets.token_hex(8), None, output)
        if not is_run:
            return new
        with new.held():
            if not resume and not force:
                raise InterruptedRunError(f"{name} holds a run that was interrupted.")
            return new._resumed() if resume else new

    def _resumed(self) -> RunFolder:
        """Return the run that the folder holds; a new one if it was killed before there was a model."""
        file = self.name / JOB_FILE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            stages = [Stage(**stage) for stage in state["stages"]]
            given, wanted = dict(state["job"]), self.job.to_dict()
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{file} is damaged ({error}), so that the run cannot go on: begin anew."
            ) from error
        if differing := list(_differing(given, wanted)):
            raise ConfigError(
                f"The run in {self.name} was another one: it differs in {', '.join(differing)}. Ask for the "
                "same, or begin anew."
            )
        if self.checkpoint is None and not (self.name / CALIBRATED / "config.json").is_file():
            return self
        return RunFolder(self.job, self.out, self.name, state.get("run", self.id), stages, self._output)

    @property
    def path(self) -> Path:
        """Where it is, wherever the process goes."""
        return self._output.path

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole."""
        return last_checkpoint(self.path)

    @property
    def calibrated(self) -> Path:
        """The model that training begins with."""
        return self.path / CALIBRATED

    def begin(self, model: PreTrainedModel, stages: list[Stage]) -> None:
        """Make the folder, with the model that training begins with; a run that was there is replaced.

        Raises:
            CheckpointError: If it cannot be written.
        """
        with self._output.staged() as folder:
            model.save_pretrained(folder / CALIBRATED)
            state = {"run": self.id, "job": self.job.to_dict(), "stages": [asdict(stage) for stage in stages]}
            (folder / JOB_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the run.

        Raises:
            CheckpointError: If another has it.
        """
        with failures_of_writing(self.name):
            descriptor = os.open(self.path / JOB_FILE, os.O_RDONLY)
        try:
            if acquire(descriptor, wait=False) is False:
                raise CheckpointError(f"Another process is training in {self.name}: wait until it is done.")
            yield
        finally:
            os.close(descriptor)

    def finished(self) -> TrainingReport | None:
        """Return the report if this run had written all of OUT when it was killed; else None."""
        try:
            written = json.loads((self.out / REPORT_FILE).read_text(encoding="utf-8"))
            if self.stages is None or written.pop("run") != self.id:
                return None
            del written["job"]
            stages = [Stage(**stage) for stage in written.pop("stages")]
            return TrainingReport(stages=stages, **written)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def remove(self) -> str | None:
        """Remove the folder; if a user's files are in it, let it stay, as no run's any more.

        Returns:
            Why it stays, if it does.
        """
        try:
            dataclasses.replace(self._output, also=WRITTEN).remove()
        except CheckpointError as error:
            (self.path / JOB_FILE).unlink(missing_ok=True)
            return f"{self.name} stays where it is. {error}"
        return None


def _differing(given: Mapping[str, Any], wanted: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield the names of the parts of two jobs that are not the same, as a user knows them."""
    for name, value in wanted.items():
        other, path = given.get(name), f"{within}{name}"
        if isinstance(value, dict) and isinstance(other, dict) and path != "config":
            yield from _differing(other, value, f"{path}.")
        elif other != value:
            yield spelled(path, OPTIONS.get(path) or spelled(name))


def _is_run(folder: Path) -> bool:
    """Return whether a folder holds the state of a run, and not just a user's file of that name."""
    file = folder / JOB_FILE
    if not file.is_file() or file.is_symlink():
        return False
    try:
        return has_manifest(folder) or {"job", "stages"} <= {*json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        return False
