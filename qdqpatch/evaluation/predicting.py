"""Running a model on features: batches of like length, and outputs without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from qdqpatch.engines import Array, Arrays
from qdqpatch.tasks.base import MODEL_INPUTS, Batch, Feature, Task

Run = Callable[[Batch], Mapping[str, Any]]
"""Runs a model on a padded batch; gives arrays or tensors by the names of its outputs."""


def predict(
    run: Run,
    task: Task[Any],
    features: Sequence[Feature],
    batch_size: int = 32,
    step: Callable[[int, int], None] | None = None,
) -> list[dict[str, Array]]:
    """Run a model on every feature.

    Args:
        run: The model.
        task: Names the outputs and makes batches.
        features: What it is given; labels and other keys are left out.
        batch_size: How many features run at once; those of like length do.
        step: Called after each batch with how many features are done, and of how many.

    Returns:
        For each feature its `task.logits`, as fp32 arrays; where one has an entry for each token, without
        those of padding.
    """
    order = sorted(range(len(features)), key=lambda each: len(features[each]["input_ids"]))
    outputs: list[dict[str, Array]] = [{} for _ in features]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = task.collate([_inputs(features[each]) for each in chosen])
        found = run(batch)
        for name in task.logits:
            values = _array(found[name])
            for place, number in enumerate(chosen):
                own = len(features[number]["input_ids"])
                outputs[number][name] = values[place, :own] if name in task.by_token else values[place]
        if step is not None:
            step(min(start + batch_size, len(order)), len(order))
    return outputs


def torch_run(model: PreTrainedModel) -> Run:
    """Return a run of a model in torch, which must be in eval mode."""

    def run(batch: Batch) -> Mapping[str, Any]:
        with torch.inference_mode():
            outputs: Mapping[str, Any] = model(
                **{name: each.to(model.device) for name, each in batch.items()}
            )
        return outputs

    return run


def engine_run(run: Callable[[Arrays], Mapping[str, Array]]) -> Run:
    """Return a run of a model in an engine whose batch and length are free."""
    return lambda batch: run({name: each.numpy() for name, each in batch.items()})


def _inputs(feature: Feature) -> Feature:
    return {name: feature[name] for name in MODEL_INPUTS if name in feature}


def _array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)
