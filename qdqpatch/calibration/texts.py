"""Texts as batches, for the verbs that calibrate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from qdqpatch.data.batches import text_batches
from qdqpatch.errors import DataError
from qdqpatch.patching.wrapped import is_sentence_model


def batches_of(data: Any, tokenizer: Any, given: object, model: PreTrainedModel) -> Any:
    """Return batches as they are, and texts, or pairs of texts, as batches of tokens.

    Args:
        data: Batches; or a list of texts or pairs.
        tokenizer: For texts; None for that of `given`, if it has one.
        given: What the user passed as the model. A model of sentence-transformers also says where texts are
            cut, and which prompt they begin with.
        model: The transformers model in it.

    Raises:
        DataError: If there are texts and no tokenizer.
        CalibrationError: If model and tokenizer do not belong together.
    """
    if isinstance(data, str):
        raise DataError("This is one text: pass a list of texts. For a file, qdqpatch.data.text_batches.")
    if not isinstance(data, Sequence) or not data or not _is_text(data[0]):
        return data
    length = None
    if is_sentence_model(given):
        held: Any = given
        tokenizer = held.tokenizer if tokenizer is None else tokenizer
        length = held.max_seq_length
        prompt = held.prompts.get(held.default_prompt_name) or ""
        data = [prompt + text if isinstance(text, str) else text for text in data]
    if tokenizer is None:
        raise DataError("These are texts and no batches: pass the model's tokenizer too, as tokenizer=...")
    return text_batches(data, tokenizer, samples=None, max_length=length, model=model)


def _is_text(item: object) -> bool:
    is_pair = isinstance(item, tuple | list) and len(item) == 2
    return isinstance(item, str) or (is_pair and all(isinstance(part, str) for part in item))  # type: ignore[attr-defined]
