"""Embeddings of texts by a model without a head; the metric is how near they are to another model's.

How texts begin and how tokens are pooled is read from the model's folder, if sentence-transformers wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.checkpoint.companions import Companions
from qdqpatch.checkpoint.sentence_head import load_sentence_head
from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import ConfigError
from qdqpatch.nn.pooling import Pooling, SentenceHead
from qdqpatch.tasks.base import Feature, rows
from qdqpatch.tasks.metrics import Metric, mean
from qdqpatch.tasks.unlabelled import Text, TextTask

EMBEDDING = "embedding"


class FeatureExtraction(TextTask):
    """What a text is as a vector: `BertModel` and the like.

    Args:
        tokenizer: The model's.
        config: The model's.
        max_length: Where sequences are cut; None for where the folder says, or 128.
        companions: What the model's folder says of prompts and pooling; where it says nothing, or this is
            None, tokens' last hidden states are averaged.
    """

    name = "feature-extraction"
    logits = by_token = ("last_hidden_state",)
    needs_labels = has_loss = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        max_length: int | None = None,
        companions: Companions | None = None,
    ) -> None:
        super().__init__(tokenizer, config, max_length)
        self._companions = Companions("") if companions is None else companions
        self._head = load_sentence_head(self._companions) or SentenceHead(Pooling())
        self._head.double()

    def features(self, examples: Sequence[Text], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each text; there are no labels."""
        return rows(self.encode(examples))

    def encode(self, examples: Sequence[Text], **options: Any) -> Any:
        """Return what the tokenizer gives for texts, each behind the folder's own prompt if it has one."""
        prompt = self._companions.prompt()
        prompted = [Text(self._companions.text(example.text, prompt), example.pair) for example in examples]
        return super().encode(prompted, **options)

    def reduce(self, feature: Feature, output: Arrays) -> Arrays:
        """Keep the embedding, shape `(size,)`, in fp64; it is pooled over all tokens, special ones too."""
        states = torch.from_numpy(output["last_hidden_state"].astype(np.float64))[None]
        mask = torch.ones(states.shape[:2], dtype=torch.int64)
        with torch.inference_mode():
            return {EMBEDDING: self._head(states, mask)[0].numpy()}

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
