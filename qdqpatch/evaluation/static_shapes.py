"""Graphs that are made for one shape, run on batches of fewer sequences and of shorter ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdqpatch.evaluation.predicting import Run
from qdqpatch.tasks.base import Batch, Task


def filled(run: Run, size: int | None, length: int | None, task: Task[Any]) -> Run:
    """Return a run that fills batches up, and cuts the outputs to what was asked for.

    Rows are padded on the right; what is missing of a batch are copies of its last row.

    Args:
        run: What takes one shape alone.
        size: How many rows it takes; None for any number.
        length: How many tokens it takes; None for any number.
        task: Has the padding and tells which outputs have an entry for each token.
    """
    if size is None and length is None:
        return run

    def run_filled(batch: Batch) -> Mapping[str, Any]:
        rows, tokens = batch["input_ids"].shape[0], batch["input_ids"].shape[-1]
        padding = 0 if length is None else length - tokens
        copies = 0 if size is None else size - rows
        full = {name: _filled(tensor, padding, copies, _value(name, task)) for name, tensor in batch.items()}
        return {
            name: output[:rows, :tokens] if name in task.by_token else output[:rows]
            for name, output in run(full).items()
            if output.ndim
        }

    return run_filled


def _filled(tensor: Tensor, padding: int, copies: int, value: int) -> Tensor:
    wide = pad(tensor, (0, padding), value=value)
    return torch.cat([wide, wide[-1:].expand(copies, *wide.shape[1:])])


def _value(name: str, task: Task[Any]) -> int:
    values = {"input_ids": task.tokenizer.pad_token_id, "token_type_ids": task.tokenizer.pad_token_type_id}
    return values.get(name) or 0
