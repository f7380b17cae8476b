"""Batches that somebody made, as a task: rows without padding, and what a head's outputs mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.calibration.batching import as_tensors
from qdqpatch.checkpoint.companions import Companions
from qdqpatch.checkpoint.sentence_head import load_sentence_head
from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.errors import CalibrationError, ConfigError, DataError
from qdqpatch.evaluation.predicting import torch_run
from qdqpatch.nn.pooling import Pooling, SentenceHead
from qdqpatch.patching.arguments import MASK
from qdqpatch.tasks.base import MODEL_INPUTS, Batch, DataSource, Feature, Task
from qdqpatch.tasks.feature_extraction import EMBEDDING
from qdqpatch.tasks.head import Meaning, classifier_of, is_known, meaning_of
from qdqpatch.tasks.metrics import Metric
from qdqpatch.tasks.neighbours import Vectors, comparison
from qdqpatch.tasks.ranking import order_metrics

KEPT = 2**18
"""So many of a text's numbers are kept, 1 MiB: a vocabulary's logits of every token would fill the memory."""


class Rows(Task[Feature]):
    """A task whose examples are rows of batches; it compares with the float model, and knows no labels.

    Args:
        model: The float model.
        companions: What the model's folder says of pooling; None for the mean over tokens.
    """

    name = "rows"
    formats = "batches"
    needs_labels = has_loss = False
    logits: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: PreTrainedModel, companions: Companions | None = None) -> None:
        self.config, self.max_length = model.config, 0
        self._classifier = classifier_of(model)
        self._padding = getattr(model.config, "pad_token_id", None) or 0
        head = None if companions is None else load_sentence_head(companions)
        self._head = (head or SentenceHead(Pooling())).double()

    def meaning(self, output: str, outcomes: int) -> Meaning:
        """Return what an output means, by the config."""
        return meaning_of(output, outcomes, self._classifier)

    def read(self, source: DataSource, labelled: bool = True) -> list[Feature]:
        """Is not used: the rows are there."""
        raise ConfigError("Rows of batches are not read from a source.")

    def features(self, examples: Sequence[Feature], training: bool = False, seed: int = 0) -> list[Feature]:
        """Return the rows."""
        return list(examples)

    def score(self, *arguments: Any, **options: Any) -> list[Metric]:
        """Is not used: rows have no labels."""
        raise ConfigError("Rows of batches have no labels.")

    def collate(self, features: Sequence[Feature]) -> Batch:
        """Pad rows on the right and stack them."""
        length = max(map(self.length, features))
        fill = {"input_ids": self._padding}
        return {
            name: torch.tensor(
                [row[name] + [fill.get(name, 0)] * (length - len(row[name])) for row in features]
            )
            for name in features[0]
        }

    def reduce(self, feature: Feature, output: Arrays) -> Arrays:
        """Keep the embedding of states; of words' logits those of a few tokens; else everything."""
        if "last_hidden_state" not in output:
            return {
                name: self._few(value) if name in self.by_token else value for name, value in output.items()
            }
        states = torch.from_numpy(output["last_hidden_state"].astype(np.float64))[None]
        with torch.inference_mode():
            mask = torch.ones(states.shape[:2], dtype=torch.int64)
            return {EMBEDDING: self._head(states, mask)[0].numpy()}

    def _few(self, values: Array) -> Array:
        """Return the rows of as many tokens as `KEPT` numbers hold, from the first to the last one."""
        most = max(KEPT // values[0].size, 1)
        if len(values) <= most:
            return values
        places = np.linspace(0, len(values) - 1, most).round().astype(int)
        kept: Array = np.take(values, places, axis=0)
        return kept

    def closeness(
        self, examples: Sequence[Feature], outputs: Sequence[Arrays], reference: Sequence[Arrays]
    ) -> list[Metric]:
        """Return how close outputs are to the reference's, by what they mean."""
        if EMBEDDING in reference[0]:
            own, other = (
                np.stack([one[EMBEDDING] for one in some]).astype(np.float64) for some in (outputs, reference)
            )
            return comparison(Vectors(own), Vectors(other))
        compared = self.compare(outputs, reference)
        first = self.logits[0]
        if reference[0][first].size > 1 or self.meaning(first, 1) != "scores":
            return compared
        own, other = (np.array([one[first].item() for one in some]) for some in (outputs, reference))
        return [*order_metrics(own, other, range(len(outputs))), *compared]


def rows_of(batches: Iterable[Mapping[str, Any]], model: PreTrainedModel) -> list[Feature]:
    """Return the rows of batches for a model, without their padding and labels.

    Raises:
        DataError: If a batch has no token ids, or what the model does not take.
        CalibrationError: If there is none.
    """
    found: list[Feature] = []
    for batch in as_tensors(batches, model):
        if "input_ids" not in batch:
            raise DataError(f"A batch of {', '.join(batch) or 'nothing'} has no input_ids.")
        tensors = {name: batch[name] for name in MODEL_INPUTS if isinstance(batch.get(name), Tensor)}
        ids = tensors["input_ids"]
        if ids.dim() != 2:
            raise DataError(f"input_ids have the shape {tuple(ids.shape)}, not (batch, length).")
        if found and (other := (tensors.keys() | {MASK}) ^ found[0].keys()):
            raise DataError(f"Some batches have {', '.join(sorted(other))} and others have not.")
        mask = tensors.get("attention_mask", torch.ones_like(ids)).bool()
        for number in range(len(ids)):
            row: Feature = {name: tensor[number][mask[number]].tolist() for name, tensor in tensors.items()}
            found.append(row | {"attention_mask": [1] * len(row["input_ids"])})
    if not found:
        raise CalibrationError("There is no batch to calibrate with.")
    return found


def rows_task(model: PreTrainedModel, row: Feature, companions: Companions | None = None) -> Rows:
    """Return the task of a float model, whose outputs are found by running it on a row.

    Raises:
        ConfigError: If it gives nothing that could be judged.
    """
    task = Rows(model, companions)
    batch = task.collate([row])
    found = {
        name: value
        for name, value in torch_run(model)(batch).items()
        if isinstance(value, Tensor) and is_known(name)
    }
    states = {name for name in found if task.meaning(name, found[name].shape[-1]) == "states"}
    names = tuple(states or found)
    if not names:
        raise ConfigError(f"{type(model).__name__} gives nothing that could be judged.")
    tokens = tuple(
        name
        for name in names
        if found[name].dim() == 3 or task.meaning(name, found[name].shape[-1]) == "positions"
    )
    kind = type("Rows", (Rows,), {"logits": names, "by_token": tokens})
    made: Rows = kind(model, companions)
    return made
