"""What became of a model: its outputs beside those that it gave in float, in torch, on the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.checkpoint.companions import Companions
from qdqpatch.data.arrays import Arrays
from qdqpatch.distributed import together
from qdqpatch.evaluation.predicting import predict, torch_run
from qdqpatch.evaluation.rows import Rows, rows_of, rows_task
from qdqpatch.tasks.base import Feature
from qdqpatch.tasks.head import Meaning
from qdqpatch.tasks.metrics import Metric


@dataclass(frozen=True)
class Before:
    """What a float model made of texts.

    Attributes:
        task: What its outputs mean.
        rows: The texts as tokens.
        outputs: What it made of them.
    """

    task: Rows
    rows: list[Feature]
    outputs: list[Arrays]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        batches: Iterable[Mapping[str, Any]],
        companions: Companions | None = None,
    ) -> Before:
        """Run the float model.

        Args:
            model: The model, in eval mode, float or with its quantizers off.
            batches: The texts, as a tokenizer gives them.
            companions: What its folder says of pooling.

        Raises:
            CalibrationError: If there is no batch of tokens.
            ConfigError: If the model gives nothing that could be judged.
        """

        def read() -> tuple[Rows, list[Feature]]:
            rows = rows_of(batches, model)
            return rows_task(model, rows[0], companions), rows

        # Running is shared, so it is begun by all processes or by none.
        task, rows = together(read, model.device)
        return cls(task, rows, predict(torch_run(model), task, rows))

    @property
    def meaning(self) -> Meaning:
        """What the outputs mean."""
        name = self.task.logits[0]
        return self.task.meaning(name, self.outputs[0][name].shape[-1] if name in self.outputs[0] else 2)

    def closeness(self, model: PreTrainedModel) -> list[Metric]:
        """Return how close a model's outputs are now, the main figure last."""
        outputs = predict(torch_run(model), self.task, self.rows)
        return self.task.closeness(self.rows, outputs, self.outputs)
