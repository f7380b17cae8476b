"""Compare what an engine makes of a file with what the patched model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from qdqpatch.data.arrays import Array
from qdqpatch.errors import ExportError
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers

STEPS = 127
"""Of an output's own range, its largest magnitude; a difference is measured in such steps."""

MARGIN = 10.0
"""A file may be this many times as far from the model as the model is from itself (`own_noise`): an engine
rounds differently in every matmul, softmax and GELU, the model's two arithmetics in the quantizers alone.
OpenVINO was seen at up to 5 times."""

CHANGED_MARGIN = 4.0
"""The same for the number of predictions that change."""

LEAST_TOLERANCE = 0.15
"""In steps, in the mean: what is allowed even where the model's own noise is smaller."""

MOST_TOLERANCE = 8.0
"""In steps, in the mean: what is not allowed even where the model's own noise is larger."""

LEAST_CHANGED = 0.05
"""Share of the predictions that may change even where the model's own noise changes fewer."""


@dataclass(frozen=True)
class OutputComparison:
    """How far an output of the file is from the model's, over all batches.

    Attributes:
        output: Its name.
        mean: The mean difference, in steps: hundred-and-twenty-sevenths of its largest magnitude.
        largest: The largest one.
        predictions: How many predictions there are: of logits, the index of the largest along the last axis.
        changed: How many of them differ.
    """

    output: str
    mean: float
    largest: float
    predictions: int
    changed: int


Run = Callable[[dict[str, Tensor]], dict[str, Array]]
"""From inputs to outputs, both by name."""


def compare(reference: Run, other: Run, batches: Iterable[dict[str, Tensor]]) -> list[OutputComparison]:
    """Run both on the same batches.

    Args:
        reference: The model.
        other: What should compute the same.
        batches: Inputs by name.

    Raises:
        ExportError: If an output is missing, has another shape or holds a NaN.
    """
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for batch in batches:
        expected, found = reference(batch), other(batch)
        if found.keys() != expected.keys():
            raise ExportError(f"The file has the outputs {sorted(found)}, the model {sorted(expected)}.")
        for name, array in expected.items():
            if found[name].shape != array.shape or not np.isfinite(found[name]).all():
                raise ExportError(
                    f"The file's {name} has the shape {found[name].shape} or is not finite; the model's has "
                    f"the shape {array.shape}. Nothing was written."
                )
            pairs.setdefault(name, []).append((array, found[name]))
    return [_comparison(name, pair) for name, pair in pairs.items()]


def own_noise(
    model: PreTrainedModel, reference: Run, batches: Iterable[dict[str, Tensor]]
) -> list[OutputComparison]:
    """Compare the model with itself: the toolkit's two arithmetics, which differ in the last bit alone.

    A last bit moves some values to the neighbouring level, and every layer carries that on. No engine,
    which adds in another order, can be closer than that but by chance.
    """

    def other(batch: dict[str, Tensor]) -> dict[str, Array]:
        quantizers = [quantizer for _, quantizer in named_quantizers(model)]
        try:
            for each in quantizers:
                each.use_fb_fake_quant = not TensorQuantizer.use_fb_fake_quant
            return reference(batch)
        finally:
            for each in quantizers:
                del each.use_fb_fake_quant

    return compare(reference, other, batches)


def require_equal(
    comparisons: Sequence[OutputComparison], noise: Callable[[], Sequence[OutputComparison]]
) -> None:
    """Refuse a file whose outputs are further from the model's than rounding explains.

    Args:
        comparisons: Of the file with the model.
        noise: Compares the model with itself, on the same batches; called only where it matters.

    Raises:
        ExportError: If one is; the message has the figures.
    """
    if all(
        comparison.mean <= LEAST_TOLERANCE
        and comparison.changed <= 1 + LEAST_CHANGED * comparison.predictions
        for comparison in comparisons
    ):
        return
    for comparison, own in zip(comparisons, noise(), strict=True):
        mean = min(max(LEAST_TOLERANCE, MARGIN * own.mean), MOST_TOLERANCE)
        changed = 1 + max(LEAST_CHANGED * own.predictions, CHANGED_MARGIN * own.changed)
        if comparison.mean > mean or comparison.changed > changed:
            raise ExportError(
                f"The file does not compute what the model does: {comparison.output} is off by "
                f"{comparison.mean:.2f} steps of 1/{STEPS} of its range in the mean (allowed: {mean:.2f}), "
                f"and {comparison.changed} of {comparison.predictions} predictions differ "
                f"(allowed: {changed:.0f}). Nothing was written."
            )


def _comparison(name: str, pairs: list[tuple[Array, Array]]) -> OutputComparison:
    step = max(float(np.abs(expected).max()) for expected, _ in pairs) / STEPS or 1.0
    differences = np.concatenate([np.abs(np.subtract(a, b)).ravel() for a, b in pairs]) / step
    logits = pairs if "logits" in name else []
    changed = sum(int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in logits)
    return OutputComparison(
        name,
        float(differences.mean()),
        float(differences.max()),
        sum(expected[..., 0].size for expected, _ in logits),
        changed,
    )
