"""Batches as a model takes them, made of what users have: tensors, arrays, lists, or rows of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdqpatch.errors import DataError
from qdqpatch.patching.arguments import IDS, check_arguments

TEXT = " Tokenize texts first; what calibrates does that of a list of them, with tokenizer=..."


def check_iterable(batches: object) -> None:
    """Find out whether something can be gone through, batch by batch.

    Raises:
        DataError: If not, or if it is a batch itself.
    """
    if isinstance(batches, Mapping):
        raise DataError("This is one batch, not a list or an iterable of batches: pass [batch].")
    if not any(hasattr(type(batches), name) for name in ("__iter__", "__getitem__")):
        raise DataError(f"Batches are a list or another iterable of them, not a {type(batches).__name__}.")


def as_tensors(
    batches: Iterable[Mapping[str, Any]], model: nn.Module | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the batches with arrays and lists made tensors, and a single row made a batch of one.

    Args:
        batches: Keyword arguments for a model, as a tokenizer returns them with or without
            `return_tensors`, or rows of a tokenized dataset. What is neither array nor list is passed on as
            it is, and so is a batch of tensors.
        model: The model that is to take them; None to check that later.

    Raises:
        DataError: If a batch is no mapping of names, a value cannot be made a tensor, or the model does not
            take it.
    """
    check_iterable(batches)
    for number, batch in enumerate(batches, start=1):
        if not isinstance(batch, Mapping):
            raise DataError(
                f"Batch {number} is a {type(batch).__name__}; each must be a mapping of the model's keyword "
                "arguments, as a tokenizer returns it."
                f"{TEXT if isinstance(batch, str) else ''}"
            )
        made = _as_batch({name: _as_tensor(value, name, number) for name, value in batch.items()})
        if model is not None:
            check_arguments(model, made, f"Batch {number}")
        yield made if any(made[name] is not value for name, value in batch.items()) else batch


def _as_tensor(value: Any, name: str, number: int) -> Any:
    if not isinstance(value, (list, tuple, np.ndarray)):
        return value
    if isinstance(value, tuple) and not all(isinstance(item, (int, float)) for item in value):
        return value  # such as encoder_outputs or past_key_values
    try:
        stacked = isinstance(value, list) and bool(value) and isinstance(value[0], Tensor)
        tensor = torch.stack(value) if stacked else torch.from_numpy(np.asarray(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{name!r} of batch {number} cannot be made a tensor. Tokenize with padding=True and "
            'return_tensors="pt", and leave out columns that the model does not take, such as the text.'
        ) from error
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _as_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of one row, if that is what it is: one whose ids have a single dimension."""
    ids = batch.get(IDS)
    if not isinstance(ids, Tensor) or ids.dim() != 1:
        return batch
    return {name: value[None] if isinstance(value, Tensor) else value for name, value in batch.items()}
