"""Texts as batches of tokens for a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qdqpatch.data.columns import Text
from qdqpatch.data.cutting import beginnings
from qdqpatch.data.lengths import served_length, shortness
from qdqpatch.data.texts import read_texts
from qdqpatch.data.vocabulary import vocabulary_problem
from qdqpatch.errors import CalibrationError, CalibrationWarning, ConfigError
from qdqpatch.patching.arguments import position_limit, taken_by
from qdqpatch.spelling import spelled

MAX_LENGTH = 512
"""Where texts are cut unless told otherwise, if model and tokenizer take as much."""


class TextBatches:
    """Tokenized texts, in their order; can be iterated over again and again.

    A batch is padded to its longest text. Models for multiple choice get every text as its one choice.

    Args:
        texts: The texts, each with its pair or None: all with one, or none.
        tokenizer: The model's tokenizer.
        model: The model; None checks and adapts nothing.
        batch_size: How many texts make a batch; the last one may have fewer.
        max_length: Where texts are cut, the longer one of a pair first; never beyond what the model takes.

    Attributes:
        max_length: Where texts are cut.
        lengths: The number of tokens of every text, cut and with special tokens.

    Raises:
        ConfigError: If a number is out of range.
        CalibrationError: If tokenizer and model do not belong together.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None = None,
        *,
        batch_size: int = 16,
        max_length: int = 128,
    ) -> None:
        self._tokenizer, self._model = tokenizer, model
        pair = bool(texts) and texts[0][1] is not None
        special = tokenizer.num_special_tokens_to_add(pair=pair)
        if batch_size < 1:
            raise ConfigError(f"{spelled('batch_size')} must be at least 1, not {batch_size}.")
        if max_length <= special:
            raise ConfigError(
                f"{spelled('max_length')} must be more than the {special} special tokens, not {max_length}."
            )
        if model is not None:
            embeddings: Any = model.get_input_embeddings()
            if problem := vocabulary_problem(tokenizer, model.config, embeddings.num_embeddings):
                raise CalibrationError(problem)
        if tokenizer.pad_token is None:
            raise CalibrationError("The tokenizer has no padding token, without which texts make no batch.")
        self.max_length = min(max_length, position_limit(model))
        kinds = None if model is None else getattr(model.config, "type_vocab_size", None)
        self._last_kind = max(kinds - 1, 0) if isinstance(kinds, int) else None
        firsts = beginnings([first for first, _ in texts], tokenizer, self.max_length)
        if pair:
            seconds = beginnings([second or "" for _, second in texts], tokenizer, self.max_length)
            texts = list(zip(firsts, seconds, strict=True))
        else:
            texts = [(first, None) for first in firsts]
        self._choices = type(model).__name__.endswith("MultipleChoice")
        self._parts = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        self.lengths = [len(tokens) for part in self._parts for tokens in self._tokenize(part)["input_ids"]]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for part in self._parts:
            batch = dict(self._tokenize(part, padding=True, return_tensors="pt"))
            if self._last_kind is not None and "token_type_ids" in batch:
                batch["token_type_ids"] = batch["token_type_ids"].clamp(max=self._last_kind)
            if self._model is not None:
                batch = taken_by(self._model, batch)
            yield {name: tensor.unsqueeze(1) if self._choices else tensor for name, tensor in batch.items()}

    def _tokenize(self, part: Sequence[Text], **options: Any) -> Any:
        firsts = [first for first, _ in part]
        seconds = [second for _, second in part if second is not None]
        return self._tokenizer(
            firsts, seconds or None, truncation=True, max_length=self.max_length, **options
        )


def text_batches(
    data: Any,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    samples: int | None = 256,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    *,
    model: PreTrainedModel | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> TextBatches:
    """Return batches for `calibrate`, of texts that are drawn at random and stay in their order.

    Gives a `CalibrationWarning` if something cannot be read, and one if `max_length` is not given and the
    texts are less than half as long as what the model takes.

    Args:
        data: A .txt, .csv, .tsv, .jsonl or SQuAD .json file, also gzipped, or a .parquet file; a folder that
            `save_to_disk` wrote; the name of a data set on the Hugging Face hub, which a string is that names
            no file; a `datasets.Dataset`; a list of texts, or of pairs.
        tokenizer: The model's tokenizer.
        text_column: The column of the texts; None chooses columns by their usual names.
        text_pair_column: The column of the second texts, if the model reads two together.
        samples: How many texts to draw; None, or more than there are, for all.
        batch_size: How many texts make a batch.
        max_length: The longest sequence that the model will serve, in tokens, where texts are cut. None for
            what model and tokenizer take, and at most 512.
        seed: What the draw depends on.
        model: The model to calibrate, to which the batches are fitted then.
        split: The split of a hub data set, or of a folder with several; None for "train".
        subset: The subset, also called config, of a hub data set; None for the only or default one.

    Raises:
        ConfigError: If an argument is out of range or does not fit the others.
        CalibrationError: If there is no such data, more than half of it cannot be read, or the tokenizer
            is not the model's.
    """
    texts = read_texts(
        data, text_column, text_pair_column, samples=samples, seed=seed, split=split, subset=subset
    )
    cut = min(MAX_LENGTH, served_length(tokenizer, model)) if max_length is None else max_length
    batches = TextBatches(texts.rows, tokenizer, model, batch_size=batch_size, max_length=cut)
    if max_length is None:
        warn_if_short(batches, served_length(tokenizer, model))
    return batches


def warn_if_short(batches: TextBatches, served: int) -> None:
    """Warn if the texts are much shorter than what the model may serve.

    Args:
        batches: The texts.
        served: The longest sequence that it may serve, in tokens.
    """
    message = shortness(batches.lengths, batches.max_length, served)
    if message is not None:
        warnings.warn(message, CalibrationWarning, stacklevel=3)
