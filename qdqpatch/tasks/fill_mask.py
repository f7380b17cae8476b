"""Masked words, told by the model; the metric is its perplexity on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from qdqpatch.data.arrays import Arrays
from qdqpatch.errors import ConfigError
from qdqpatch.tasks.base import IGNORED, Feature, rows
from qdqpatch.tasks.masking import mask_tokens
from qdqpatch.tasks.metrics import Metric, Ratio
from qdqpatch.tasks.unlabelled import Text, TextTask

WANTED = "wanted"
"""Key of a feature that is not for training: the tokens to tell, where others have `IGNORED`."""


RELATIVE = "perplexity ratio"


class FillMask(TextTask):
    """Which words were masked: `...ForMaskedLM`.

    Raises:
        ConfigError: If the tokenizer has no mask token.
    """

    name = "fill-mask"
    logits = by_token = ("logits",)
    needs_labels = False

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int | None = None
    ) -> None:
        super().__init__(tokenizer, config, max_length)
        if tokenizer.mask_token_id is None:
            raise ConfigError("Filling in masks needs a tokenizer that has a mask token.")

    def features(self, examples: Sequence[Text], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize and mask each text: the same text and seed get the same masks.

        `labels` are the masked tokens; without `training` they are under a key that the model is not given.
        """
        encoded = self.encode(examples, return_special_tokens_mask=True)
        features = rows(encoded)
        for feature, special in zip(features, encoded["special_tokens_mask"], strict=True):
            feature["input_ids"], feature["labels" if training else WANTED] = mask_tokens(
                feature["input_ids"],
                special,
                self.tokenizer.mask_token_id,
                self.tokenizer.vocab_size,
                seed,
            )
        return features

    def reduce(self, feature: Feature, output: Arrays) -> Arrays:
        """Keep the negative log likelihood of the masked tokens, summed, in place of all logits."""
        wanted = torch.tensor(feature[WANTED])
        masked = wanted != IGNORED
        logits = torch.from_numpy(output["logits"][masked.numpy()]).double()
        return {"nll": cross_entropy(logits, wanted[masked], reduction="sum").numpy()}

    def score(
        self,
        examples: Sequence[Text],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the perplexity: the exponential of the mean negative log likelihood of masked tokens."""
        losses = np.array([output["nll"] for output in outputs], dtype=np.float64)
        counts = np.array(
            [np.sum(np.array(feature[WANTED]) != IGNORED) for feature in features], dtype=np.float64
        )
        return [Ratio("perplexity", losses, counts, in_percent=False, exponential=True)]

    def closeness(
        self, examples: Sequence[Text], outputs: Sequence[Arrays], reference: Sequence[Arrays]
    ) -> list[Metric]:
        """Return the perplexity in relation to the reference's, over texts: 1 where both are the same."""
        apart = [
            float(own["nll"]) - float(other["nll"]) for own, other in zip(outputs, reference, strict=True)
        ]
        return [Ratio(RELATIVE, np.array(apart), np.ones(len(apart)), in_percent=False, exponential=True)]
