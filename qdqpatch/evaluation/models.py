"""Contenders, loaded and ready to run on the features of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.engines.contenders import TORCH, Contender
from qdqpatch.engines.device import to_fastest_device
from qdqpatch.engines.sessions import ENGINES, fixed_sizes
from qdqpatch.errors import ConfigError, EngineError, one_line
from qdqpatch.evaluation.predicting import Run, engine_run, torch_run
from qdqpatch.evaluation.static_shapes import filled
from qdqpatch.spelling import counted, spelled
from qdqpatch.tasks.base import Batch, Feature, Task


@dataclass(frozen=True)
class Model:
    """A contender that is ready to run.

    Attributes:
        contender: Which one.
        run: Runs it on batches of any size up to `batch`, and any length up to `length`.
        batch: How many sequences its graph is made for; None for any number.
        length: How many tokens its graph is made for; None for any number.
        note: What a reader of its figures has to know.
    """

    contender: Contender
    run: Run
    batch: int | None = None
    length: int | None = None
    note: str | None = None

    def check_lengths(self, task: Task[Any], features: Sequence[Feature]) -> None:
        """Find out whether the graph takes all features.

        Raises:
            ConfigError: If one is longer than what it is made for.
        """
        longest = max(map(task.length, features))
        if self.length is not None and longest > self.length:
            shorter = spelled(f"max_length={self.length}", f"--max-length {self.length}")
            raise ConfigError(
                f"{self.contender} is made for sequences of {counted(self.length, 'token')}, and the data "
                "has some of "
                f"{longest}. Cut them with {shorter}."
            )


def load(contender: Contender, task: Task[Any], threads: int | None = None) -> Model:
    """Load a contender.

    Args:
        contender: What to load.
        task: Names the head of a checkpoint, and the outputs that a model must have.
        threads: How many threads an engine may use; torch's number is not set here.

    Raises:
        CheckpointError: If transformers cannot load a checkpoint, or it lacks weights of the task's head.
        EngineError: If an engine refuses a file.
    """
    if contender.engine == TORCH:
        return Model(contender, _complete(_load_checkpoint(contender, task), contender, task))
    try:
        session = ENGINES[contender.engine].load(Path(contender.path), threads)
    except EngineError as error:
        raise EngineError(one_line(error)) from error
    batch, length = fixed_sizes(session.inputs)
    run = filled(engine_run(session), batch, length, task)
    return Model(contender, _complete(run, contender, task), batch, length, session.note)


def _load_checkpoint(contender: Contender, task: Task[Any]) -> Run:
    model, _ = open_checkpoint(contender.path, task.name).load()
    return torch_run(to_fastest_device(model).eval())


def _complete(run: Run, contender: Contender, task: Task[Any]) -> Run:
    """Return a run that says which outputs are not there, and which model failed."""

    def checked(batch: Batch) -> Mapping[str, Any]:
        try:
            found = run(batch)
        except Exception as error:  # engines and models raise types of their own
            raise EngineError(f"{contender}: {one_line(error)}") from error
        missing = [name for name in task.logits if name not in found]
        if missing:
            raise ConfigError(
                f"{contender} is no model for {task.name}: it gives {', '.join(found)}, and no "
                f"{' and no '.join(missing)}."
            )
        return found

    return checked
