"""Whether a batch holds what a model's `forward` takes: found out before the model runs on it.

transformers and torch say of a token that no embedding knows "index out of range in self", and nothing of a
misspelled `attention_mask`, without which padding counts.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch.errors import DataError, QdqError, UnsupportedModelError, one_line
from qdqpatch.nn.attention import HARMLESS
from qdqpatch.patching.wrapped import is_sentence_model, refusal
from qdqpatch.spelling import counted

IDS, EMBEDDED, MASK = "input_ids", "inputs_embeds", "attention_mask"

TABLES = {"token_type_ids": "token_type_embeddings", "position_ids": "position_embeddings"}
"""What transformers calls the modules that look numbers of tokens up, by the argument."""

POSITIONS = ("position_embeddings", "position_embedding", "wpe")
"""What transformers calls the modules that look positions up."""

HANDED_ON = (*HARMLESS, "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")
"""Tensors that every model of transformers takes, whether its `forward` names them or not."""


REFUSALS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What torch and transformers raise for arguments that they cannot compute with."""


def run(model: nn.Module, batch: Mapping[str, Any], where: str = "a batch") -> Any:
    """Return a model's outputs for keyword arguments.

    Args:
        model: The model.
        batch: What it is given, on its device.
        where: What the error calls the batch.

    Raises:
        DataError: If it cannot be run, for what it was given is not what it takes; what torch or transformers
            said is the cause. A lack of memory and errors of our own are raised as they are.
        UnsupportedModelError: If it is a model of sentence-transformers, which takes batches in another way.
    """
    try:
        return model(**batch, **by_name(model))
    except (QdqError, torch.OutOfMemoryError):
        raise
    except REFUSALS as error:
        raise _cannot_run(model, batch, where, error) from error


def by_name(model: nn.Module) -> dict[str, bool]:
    """Return the argument by which a model gives its outputs by name, where its config says a tuple."""
    config = getattr(model, "config", None)
    return {} if getattr(config, "return_dict", True) else {"return_dict": True}


def check_arguments(model: nn.Module, batch: Mapping[str, Any], where: str = "The batch") -> None:
    """Find out whether a model takes what a batch holds.

    Args:
        model: The model.
        batch: Keyword arguments for its `forward`.
        where: What the error calls the batch, as the beginning of a sentence.

    Raises:
        DataError: If there is a name that it does not take, a number that one of its embeddings does not
            have, a sequence of no length or more than it has positions for, or a mask of another shape.
    """
    _check_names(model, batch, where)
    shape = _check_ids(model, batch, where)
    if shape is None:
        return
    limit = position_limit(model)
    if shape[-1] > limit:
        raise DataError(
            f"{where} has sequences of {counted(shape[-1], 'token')}, and the model has positions for "
            f"{limit}: tokenize with truncation=True, max_length={limit}."
        )
    mask = batch.get(MASK)
    if not isinstance(mask, Tensor) or mask.dim() != len(shape) or "past_key_values" in batch:
        return
    if tuple(mask.shape) != shape:
        raise DataError(
            f"{where} has an attention_mask of shape {tuple(mask.shape)} for {shape[0]} rows of {shape[-1]} "
            "tokens: it has an entry for every token."
        )


def position_limit(model: nn.Module | None) -> int:
    """Return the longest sequence of tokens for which a model has positions; `sys.maxsize` if unknown.

    The positions of tokens stand beside the table of tokens; those of an image's pieces, of words on a page
    and of what a detector asks for do not.
    """
    limits = [sys.maxsize]
    for parent in model.modules() if model is not None else ():
        tables = {name: child for name, child in parent.named_children() if isinstance(child, nn.Embedding)}
        for name in POSITIONS if len(tables) > 1 else ():
            if (table := tables.get(name)) is not None:
                # RoBERTa and its kin count from the position after that of padding.
                unused = 0 if table.padding_idx is None else table.padding_idx + 1
                limits.append(table.num_embeddings - unused)
    return min(limits)


def taken_by(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what of a batch a model's `forward` names: many take no segments. All if it names nothing."""
    named = {
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind in _NAMED
    }
    return {name: tensor for name, tensor in batch.items() if not named or name in named}


def _check_names(model: nn.Module, batch: Mapping[str, Any], where: str) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    taken = [parameter.name for parameter in parameters if parameter.kind in _NAMED]
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    # What wraps a model, as peft does, hands on to it what it does not name.
    if not taken or (takes_more and not isinstance(model, PreTrainedModel)):
        return
    for name, value in batch.items():
        if name in taken or (takes_more and (name in HANDED_ON or not isinstance(value, Tensor))):
            continue
        close = difflib.get_close_matches(str(name), taken, n=1, cutoff=0.8)
        remedy = f"did you mean {close[0]!r}?" if close else "leave it out."
        raise DataError(f"{where} has {name!r}, which {type(model).__name__} does not take: {remedy}")


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _check_ids(model: nn.Module, batch: Mapping[str, Any], where: str) -> tuple[int, ...] | None:
    """Return the shape of the tokens, `(batch, length)` and maybe choices between; None of what has none."""
    ids, embedded = batch.get(IDS), batch.get(EMBEDDED)
    if ids is None:
        return tuple(embedded.shape[:-1]) if isinstance(embedded, Tensor) and embedded.dim() > 1 else None
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() < 2:
        kind = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise DataError(f"{where} has input_ids that are {kind}, not whole numbers of shape (batch, length).")
    if not ids.numel():
        raise DataError(f"{where} has input_ids of shape {tuple(ids.shape)}: there is no token in it.")
    for name, table in _tables(model).items():
        numbers = batch.get(name)
        if not isinstance(numbers, Tensor) or numbers.is_floating_point() or not numbers.numel():
            continue
        # Where batches are, which is the CPU unless somebody moved them: there this waits for no device.
        values = numbers.detach().cpu().numpy()
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= table:
            hint = " Take the tokenizer that the model was trained with." if name == IDS else ""
            raise DataError(
                f"{where} has {name} of {low if low < 0 else high}, and those of {type(model).__name__} are "
                f"from 0 to {table - 1}.{hint}"
            )
    return tuple(ids.shape)


def _tables(model: nn.Module) -> dict[str, int]:
    """Return how many rows an argument's embeddings have; of what is looked up otherwise, nothing."""
    rows: dict[str, int] = {}
    try:
        words: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        words = None
    # A model of texts and images puts numbers of its own among the tokens.
    if isinstance(words, nn.Embedding) and not hasattr(getattr(model, "config", None), "vision_config"):
        rows[IDS] = words.num_embeddings
    for argument, attribute in TABLES.items():
        sizes = [
            module.num_embeddings
            for name, module in model.named_modules()
            if name.rpartition(".")[2] == attribute and isinstance(module, nn.Embedding)
        ]
        if sizes:
            rows[argument] = max(sizes)
    return rows


def _cannot_run(model: nn.Module, batch: Mapping[str, Any], where: str, error: Exception) -> QdqError:
    if is_sentence_model(model):
        return UnsupportedModelError(refusal(model))
    shapes = [
        f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else f"{name} ({type(value).__name__})"
        for name, value in batch.items()
    ]
    given = ", ".join(shapes) or "nothing"
    return DataError(f"{type(model).__name__} cannot be run on {where}, of {given}: {one_line(error)}")
