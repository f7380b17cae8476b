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
from qdqpatch.errors import ConfigError, DataError
from qdqpatch.nn.pooling import Pooling, SentenceHead
from qdqpatch.tasks.base import DataSource, Feature, Task, rows
from qdqpatch.tasks.metrics import Correlation, Floats, Metric, mean
from qdqpatch.tasks.neighbours import COSINE, SPEARMAN, Vectors, comparison, retrieval
from qdqpatch.tasks.pairs import (
    DOCUMENT_PROMPTS,
    QUERY_PROMPTS,
    Pair,
    query_columns,
    score_column,
    score_of,
)
from qdqpatch.tasks.reading import read_rows, text_names
from qdqpatch.tasks.unlabelled import Text, encoded

EMBEDDING = "embedding"

Example = Text | Pair


class FeatureExtraction(Task[Example]):
    """What a text is as a vector: `BertModel` and the like.

    Of a query and the document that it is for, and of two texts with a score of how alike they are, each is
    embedded by itself; two texts of other columns are read together as one.

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
    formats = (
        "TXT with a text on each line; CSV, TSV or JSONL with a column of texts, or two: a query and its "
        "document, or two texts and a score"
    )

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        max_length: int | None = None,
        companions: Companions | None = None,
    ) -> None:
        super().__init__(tokenizer, config, max_length)
        self._companions = Companions("") if companions is None else companions
        self.head: SentenceHead = load_sentence_head(self._companions) or SentenceHead(Pooling())
        self.head.double()

    def read(self, source: DataSource, labelled: bool = True) -> list[Example]:
        """Read rows or lines: texts; or queries and documents, or two texts and their score.

        Raises:
            DataError: If a score is no number, or all of them are the same.
        """
        examples: list[Example] = []
        queries: tuple[str, str] | None = None
        text, pair, score = "", None, None
        for row in read_rows(source):
            if not examples:
                queries = query_columns(row, source.columns)
                text, pair = queries or text_names(row, source.columns, source)
                score = None if pair is None or queries else score_column(row, source.columns)
            if pair is not None and (queries or score is not None):
                number = None if score is None else score_of(row, score)
                examples.append(Pair(row.text(text), row.text(pair), number))
            else:
                examples.append(Text(row.text(text), None if pair is None else row.text(pair)))
        if (
            score is not None
            and len({example.score for example in examples if isinstance(example, Pair)}) < 2
        ):
            raise DataError(f"All scores of {source.name} are the same, with which nothing correlates.")
        return examples

    def features(self, examples: Sequence[Example], training: bool = False, seed: int = 0) -> list[Feature]:
        """Tokenize each text, both of a `Pair` one after the other; there are no labels."""
        pairs = [example for example in examples if isinstance(example, Pair)]
        if not pairs:
            texts = [example for example in examples if isinstance(example, Text)]
            return rows(self._encode(texts, self._prompt(())))
        are_queries = pairs[0].score is None
        sides = (
            rows(self._encode([Text(text) for text in texts], self._prompt(names)))
            for texts, names in (
                ([pair.first for pair in pairs], QUERY_PROMPTS if are_queries else ()),
                ([pair.second for pair in pairs], DOCUMENT_PROMPTS if are_queries else ()),
            )
        )
        return [feature for both in zip(*sides, strict=True) for feature in both]

    def _prompt(self, names: Sequence[str]) -> str:
        """Return the first prompt of these names; the folder's own if it has none of them."""
        return self._companions.prompt(
            next((name for name in names if name in self._companions.prompts), None)
        )

    def _encode(self, examples: Sequence[Text], prompt: str) -> Any:
        prompted = [Text(self._companions.text(example.text, prompt), example.pair) for example in examples]
        return encoded(self, prompted)

    def reduce(self, feature: Feature, output: Arrays) -> Arrays:
        """Keep the embedding, shape `(size,)`, in fp64; it is pooled over all tokens, special ones too."""
        states = torch.from_numpy(output["last_hidden_state"].astype(np.float64))[None]
        mask = torch.ones(states.shape[:2], dtype=torch.int64)
        with torch.inference_mode():
            return {EMBEDDING: self.head(states, mask)[0].numpy()}

    def score(
        self,
        examples: Sequence[Example],
        features: Sequence[Feature],
        outputs: Sequence[Arrays],
        reference: Sequence[Arrays] | None = None,
    ) -> list[Metric]:
        """Return the mean cosine similarity to the reference model's embeddings, then what the data tells.

        That is Pearson's and Spearman's correlation of cosines with scores, or how well queries find their
        documents: recall at 1 and at 10, and the mean reciprocal rank.

        Raises:
            ConfigError: If there is neither a reference nor anything that the data tells.
        """
        found = [] if reference is None else [_mean_cosine(outputs, reference)]
        found += self._by_data(examples, outputs)
        if not found:
            raise ConfigError(
                "Embeddings have no metric of their own: name a model to compare them with, such as the one "
                "before quantization."
            )
        return found

    def _by_data(self, examples: Sequence[Example], outputs: Sequence[Arrays]) -> list[Metric]:
        pairs = [example for example in examples if isinstance(example, Pair)]
        if not pairs:
            return []
        scores = [pair.score for pair in pairs if pair.score is not None]
        if scores:
            firsts, seconds = _stacked(outputs[::2]), _stacked(outputs[1::2])
            alike = cosine_similarity(torch.from_numpy(firsts), torch.from_numpy(seconds)).numpy()[:, None]
            true = np.array(scores)[:, None]
            return [
                Correlation("Pearson", alike, true),
                Correlation(SPEARMAN, alike, true, of_ranks=True),
            ]
        documents = _documents(pairs)
        index = _stacked(outputs[1::2])[list(documents.values())]
        places = {document: place for place, document in enumerate(documents)}
        return retrieval(_stacked(outputs[::2]), index, [places[pair.second] for pair in pairs])

    def closeness(
        self, examples: Sequence[Example], outputs: Sequence[Arrays], reference: Sequence[Arrays]
    ) -> list[Metric]:
        """Return how far embeddings are from the reference's, and what they find; last the mean cosine."""
        pairs = [example for example in examples if isinstance(example, Pair)]
        if not pairs or pairs[0].score is not None:
            return comparison(Vectors(_stacked(outputs)), Vectors(_stacked(reference)))
        documents = list(_documents(pairs).values())
        own, other = (
            Vectors(_stacked(embeddings[::2]), _stacked(embeddings[1::2])[documents])
            for embeddings in (outputs, reference)
        )
        return comparison(own, other)


def _documents(pairs: Sequence[Pair]) -> dict[str, int]:
    """Return every document once, with the number of a pair that has it."""
    return {pair.second: number for number, pair in reversed([*enumerate(pairs)])}


def _stacked(outputs: Sequence[Arrays]) -> Floats:
    return np.stack([output[EMBEDDING] for output in outputs])


def _mean_cosine(outputs: Sequence[Arrays], reference: Sequence[Arrays]) -> Metric:
    own, other = (torch.from_numpy(_stacked(embeddings)) for embeddings in (outputs, reference))
    return mean(COSINE, cosine_similarity(own, other).tolist(), in_percent=False)
