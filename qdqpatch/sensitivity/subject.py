"""Running a quantized model with some of its quantizers on, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.errors import DataError
from qdqpatch.evaluation.predicting import batches
from qdqpatch.patching.apply import enabled_quantizers
from qdqpatch.tasks.base import Batch, Feature, Task

Switch = Callable[[Collection[str]], None]
"""Turns on the quantizers of the given paths, and all others off."""

Step = Callable[[str, int, int], None]
"""Told what is done now, how many steps are done, and of how many."""


@contextmanager
def switching(model: PreTrainedModel) -> Iterator[Switch]:
    """Give a switch for the quantizers that are on, in eval mode; however the block ends, all are on again.

    Raises:
        NotQuantizedError: If the model has no enabled quantizer.
    """
    quantizers = enabled_quantizers(model)
    modes = {module: module.training for module in model.modules()}

    def only(paths: Collection[str]) -> None:
        for path, quantizer in quantizers.items():
            if path in paths:
                quantizer.enable()
            else:
                quantizer.disable()

    model.eval()
    try:
        yield only
    finally:
        only(quantizers)
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class Subject:
    """A model and what it is run on.

    Attributes:
        model: A quantized model.
        task: Its task.
        examples: What `task.read` gave.
        features: Their features.
        batch_size: How many features run at once.
    """

    model: PreTrainedModel
    task: Task[Any]
    examples: Sequence[Any]
    features: Sequence[Feature]
    batch_size: int

    @classmethod
    def of(cls, model: PreTrainedModel, task: Task[Any], examples: Sequence[Any], batch_size: int) -> Subject:
        """Tokenize the examples.

        Raises:
            DataError: If there is none.
        """
        if not examples:
            raise DataError("There are no examples to measure with.")
        return cls(model, task, examples, task.features(examples), batch_size)

    def batches(self) -> list[Batch]:
        """Return the features as padded batches, those of like length together; labels are left out."""
        features = sorted(self.features, key=self.task.length)
        return batches(self.task, features, self.batch_size, self.model)


class Progress:
    """Counts steps.

    Args:
        step: Told of each.
        total: How many there are; fewer may turn out to be needed.
    """

    def __init__(self, step: Step, total: int) -> None:
        self._step, self._total, self._done = step, total, 0

    def advance(self, text: str) -> None:
        """Count a step, after which comes what the text says."""
        self._done += 1
        self._step(text, min(self._done, self._total), self._total)
