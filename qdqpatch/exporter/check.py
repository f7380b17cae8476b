"""Compare what an engine makes of a file with what the patched model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qdqpatch.engines import Array, Session
from qdqpatch.errors import ExportError

STEPS = 127
"""Of an output's own range, its largest magnitude; a difference is measured in such steps."""

MEAN_TOLERANCE = 1.5
"""In steps. Engines multiply, add and round in another order, so that a value between two levels may become
the other one, and each layer carries that on. The same model computed with the toolkit's two arithmetics,
which differ in the last bit, is up to 1 step apart in the mean (BERT-base, 12 layers)."""


@dataclass(frozen=True)
class Comparison:
    """How far an output of the file is from the model's, over all batches.

    Attributes:
        output: Its name.
        mean: The mean difference, in steps: hundred-and-twenty-sevenths of its largest magnitude.
        largest: The largest one.
        predictions: How many predictions (positions of the largest value along the last axis) there are.
        changed: How many of them differ.
    """

    output: str
    mean: float
    largest: float
    predictions: int
    changed: int


def compare(
    reference: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    session: Session,
    batches: Iterable[dict[str, Tensor]],
) -> list[Comparison]:
    """Run both on the same batches.

    Args:
        reference: Returns the model's outputs by name.
        session: The file, loaded.
        batches: Inputs by name.

    Raises:
        ExportError: If an output is missing, has another shape or holds a NaN.
    """
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for batch in batches:
        with torch.no_grad():
            expected = reference(batch)
        found = session.run({name: tensor.numpy() for name, tensor in batch.items()})
        if found.keys() != expected.keys():
            raise ExportError(f"The file has the outputs {sorted(found)}, the model {sorted(expected)}.")
        for name, tensor in expected.items():
            if found[name].shape != tuple(tensor.shape) or np.isnan(found[name]).any():
                raise ExportError(
                    f"The output {name} has the shape {found[name].shape} or NaNs; the model's is of the shape "
                    f"{tuple(tensor.shape)}."
                )
            pairs.setdefault(name, []).append((tensor.numpy(), found[name]))
    return [_comparison(name, each) for name, each in pairs.items()]


def require_equal(comparisons: Iterable[Comparison]) -> None:
    """Refuse a file whose outputs are further from the model's than rounding explains.

    Raises:
        ExportError: If one is; the message has the figures.
    """
    for each in comparisons:
        if each.mean > MEAN_TOLERANCE:
            raise ExportError(
                f"The file does not compute what the model does: {each.output} is off by {each.mean:.2f} "
                f"steps of 1/{STEPS} of its range in the mean (tolerance {MEAN_TOLERANCE}), and "
                f"{each.changed} of {each.predictions} predictions differ. Nothing was written."
            )


def _comparison(name: str, pairs: list[tuple[Array, Array]]) -> Comparison:
    expected, found = (list(each) for each in zip(*pairs, strict=True))
    step = max(float(np.abs(array).max()) for array in expected) / STEPS or 1.0
    differences = np.concatenate([np.abs(a - b).ravel() for a, b in pairs]) / step
    predictions = list(_predictions(expected))
    changed = sum(int((a != b).sum()) for a, b in zip(predictions, _predictions(found), strict=True))
    return Comparison(
        name,
        float(differences.mean()),
        float(differences.max()),
        sum(each.size for each in predictions),
        changed,
    )


def _predictions(arrays: list[Array]) -> Iterator[Array]:
    for array in arrays:
        yield array.argmax(-1)
