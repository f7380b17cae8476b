"""Texts as batches, for the verbs that calibrate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.calibration.batching import check_iterable
from qdqpatch.data.batches import text_batches
from qdqpatch.errors import DataError
from qdqpatch.patching.arguments import IDS
from qdqpatch.patching.wrapped import is_sentence_model


def batches_of(data: Any, tokenizer: Any, given: object, model: PreTrainedModel) -> Any:
    """Return batches as they are, and texts, or pairs of texts, as batches of tokens.

    Args:
        data: Batches; or a list, an array or a column of texts or pairs. With a tokenizer also rows of a data
            set with a column of texts.
        tokenizer: For texts; None for that of `given`, if it has one.
        given: What the user passed as the model. A model of sentence-transformers also says where texts are
            cut, and which prompt they begin with.
        model: The transformers model in it.

    Raises:
        DataError: If there are texts and no tokenizer, or it is one text, one batch or a file.
        CalibrationError: If model and tokenizer do not belong together.
    """
    if isinstance(data, str | Path):
        raise DataError("This is one text: pass a list of texts. For a file, qdqpatch.data.text_batches.")
    check_tokenizer(tokenizer)
    listed = data.tolist() if isinstance(data, Listed) and not isinstance(data, Tensor) else data
    check_iterable(listed)
    first = _first(listed)
    if not _is_text(first) and not (tokenizer is not None and _has_text(first)):
        return data
    data = listed
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


def check_tokenizer(tokenizer: object) -> None:
    """Raise a `DataError` if a tokenizer is only the name of one."""
    if isinstance(tokenizer, str | Path):
        raise DataError(f"The tokenizer is a name: pass AutoTokenizer.from_pretrained({str(tokenizer)!r}).")


@runtime_checkable
class Listed(Protocol):
    """An array of NumPy, or a column of a data frame."""

    def tolist(self) -> Any:
        """Return what is in it."""


@runtime_checkable
class Rows(Protocol):
    """A list, or a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def _first(data: Any) -> Any:
    """Return the first row; None of what has no rows, or is to be run through alone."""
    if not isinstance(data, Rows) or not len(data):
        return None
    try:
        return data[0]
    except (LookupError, TypeError):  # a data frame has columns by their names
        return None


def _has_text(item: object) -> bool:
    """Whether something is the row of a data set that nobody has tokenized."""
    is_row = isinstance(item, Mapping) and IDS not in item
    return is_row and any(isinstance(value, str) for value in item.values())  # type: ignore[attr-defined]


def _is_text(item: object) -> bool:
    is_pair = isinstance(item, tuple | list) and len(item) == 2
    return isinstance(item, str) or (is_pair and all(isinstance(part, str) for part in item))  # type: ignore[attr-defined]
