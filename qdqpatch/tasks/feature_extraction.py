"""Embeddings of texts by a model without a head; the metric is how near they are to another model's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import ConfigError
from qdqpatch.tasks.base import Feature, rows
from qdqpatch.tasks.metrics import Metric, mean
from qdqpatch.tasks.unlabelled import Text, TextTask

EMBEDDING = "embedding"


class FeatureExtraction(TextTask):
    """What a text is as a vector, the mean of its tokens' last hidden states: `BertModel` and the like."""

    name = "feature-extraction"
    logits = by_token = ("last_hidden_state",)
    needs_labels = has_loss = False
    has_loss = False

    def features(self, examples: Sequence[Text], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each text; there are no labels."""
        return rows(self.encode(examples))

    def reduce(self, feature: Feature, output: Arrays) -> Arrays:
        """Keep the mean over all tokens, special ones too: the embedding, shape `(hidden,)`, in fp64."""
        return {EMBEDDING: output["last_hidden_state"].astype(np.float64).mean(axis=0)}

    def score(
        self,
        examples: Sequence[Text],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the mean cosine similarity to the reference model's embeddings.

        Raises:
            ConfigError: If there is no reference.
        """
        if reference is None:
            raise ConfigError(
                "Embeddings have no metric of their own: name a model to compare them with, such as the one "
                "before quantization."
            )
        own, other = (
            torch.from_numpy(np.stack([embedding[EMBEDDING] for embedding in embeddings]))
            for embeddings in (outputs, reference)
        )
        return [mean("cosine", cosine_similarity(own, other).tolist(), in_percent=False)]
