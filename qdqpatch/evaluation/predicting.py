"""Running a model on features: batches of like length, and outputs without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from qdqpatch.data.arrays import Array, Arrays
from qdqpatch.distributed import gather, share
from qdqpatch.engines.sessions import Session
from qdqpatch.patching.arguments import run as run_model
from qdqpatch.patching.arguments import taken_by
from qdqpatch.tasks.base import MODEL_INPUTS, Batch, Feature, Task

Run = Callable[[Batch], Mapping[str, Any]]
"""Runs a model on a padded batch; gives arrays or tensors by the names of its outputs."""


def predict(
    run: Run,
    task: Task[Any],
    features: Sequence[Feature],
    batch_size: int = 32,
    step: Callable[[int, int], None] | None = None,
) -> list[Arrays]:
    """Run a model on every feature; several processes share the batches, and all get all outputs.

    Args:
        run: The model.
        task: Names the outputs, makes batches, and tells what is kept.
        features: What it is given; labels and other keys are left out.
        batch_size: How many features run at once; those of like length do.
        step: Called after each batch with how many features are done, and of how many.

    Returns:
        For each feature what `task.reduce` leaves of its `task.logits`, which are fp32 arrays; where one
        has an entry for each token, without those of padding.
    """
    lengths = [task.length(feature) for feature in features]
    order = sorted(range(len(features)), key=lengths.__getitem__)
    outputs: dict[int, Arrays] = {}
    for start in share(range(0, len(order), batch_size)):
        chosen = order[start : start + batch_size]
        batch = task.collate([_inputs(features[index]) for index in chosen])
        found = run(batch)
        values = {name: _array(found[name]) for name in task.logits}
        for place, number in enumerate(chosen):
            own = {
                name: value[place, : lengths[number]] if name in task.by_token else value[place]
                for name, value in values.items()
            }
            outputs[number] = task.reduce(features[number], own)
        if step is not None:
            step(min(start + batch_size, len(order)), len(order))
    gathered = gather(outputs)
    return [gathered[number] for number in range(len(features))]


def batches(
    task: Task[Any], features: Sequence[Feature], batch_size: int, model: PreTrainedModel | None = None
) -> list[Batch]:
    """Return features without labels as batches, in their order: what a model is calibrated with.

    Args:
        task: Makes batches of them.
        features: Of all examples.
        batch_size: How many make a batch.
        model: The model, for what it takes alone; None for all that the tokenizer makes.
    """
    made = [
        task.collate([_inputs(feature) for feature in features[start : start + batch_size]])
        for start in range(0, len(features), batch_size)
    ]
    return made if model is None else [taken_by(model, batch) for batch in made]


def torch_run(model: PreTrainedModel) -> Run:
    """Return a run of a model in torch, which must be in eval mode; it gets the tensors that it takes."""

    def run(batch: Batch) -> Mapping[str, Any]:
        with torch.inference_mode():
            given = {name: tensor.to(model.device) for name, tensor in taken_by(model, batch).items()}
            outputs: Mapping[str, Any] = run_model(model, given)
        return outputs

    return run


def engine_run(session: Session) -> Run:
    """Return a run of a model in an engine; it gets the tensors that it takes, in the types that it takes."""
    taken = {value.name: value.dtype for value in session.inputs}
    return lambda batch: session.run(
        {name: tensor.numpy().astype(taken[name]) for name, tensor in batch.items() if name in taken}
    )


def _inputs(feature: Feature) -> Feature:
    return {name: feature[name] for name in MODEL_INPUTS if name in feature}


def _array(values: Any) -> Array:
    if isinstance(values, torch.Tensor):
        values = values.float().cpu().numpy()
    return np.asarray(values, dtype=np.float32)
