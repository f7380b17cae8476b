"""Compare what an engine makes of a file with what the patched model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from qdqpatch.data.arrays import Array
from qdqpatch.errors import ExportError
from qdqpatch.nn.names import WEIGHT
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.patching.apply import named_quantizers
from qdqpatch.spelling import counted, spelled
from qdqpatch.tasks.head import is_known, meaning_of, orders, predictions

STEPS = 127
"""Of an output's own range, its largest magnitude; a difference is measured in such steps."""

MARGIN = 10.0
"""A file may be this many times as far from the model as the model is from itself (`own_noise`): an engine
rounds differently in every matmul, softmax and GELU, the model's two arithmetics in the quantizers alone.
OpenVINO was seen at up to 5 times."""

CHANGED_MARGIN = 4.0
"""The same for the number of predictions that change."""

JITTERS = 4
"""So many runs with other last bits tell how far the model is from itself."""

JITTER = 2.0**-18
"""Of a tensor's largest magnitude: what another order of adding makes of sums of some thousand products."""

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
        predictions: How many predictions there are: the likeliest class or position, whether a label is
            likely, or which of two rows has the higher score (`qdqpatch.tasks.head`).
        changed: How many of them differ.
    """

    output: str
    mean: float
    largest: float
    predictions: int
    changed: int


Run = Callable[[dict[str, Tensor]], dict[str, Array]]
"""From inputs to outputs, both by name."""


def remembered(run: Run) -> Run:
    """Return a function that runs a batch once, and gives the same again; it knows batches by identity."""
    known: dict[int, tuple[dict[str, Tensor], dict[str, Array]]] = {}

    def recall(batch: dict[str, Tensor]) -> dict[str, Array]:
        if id(batch) not in known:
            known[id(batch)] = batch, run(batch)
        return known[id(batch)][1]

    return recall


def compare(
    reference: Run,
    other: Run,
    batches: Iterable[dict[str, Tensor]],
    classifier: PreTrainedConfig | None = None,
) -> list[OutputComparison]:
    """Run both on the same batches.

    Args:
        reference: The model.
        other: What should compute the same.
        batches: Inputs by name.
        classifier: The config of a classifier of texts, which says what its logits mean; None for another
            head.

    Raises:
        ExportError: If an output is missing, has another shape or holds a NaN, or there is none.
    """
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    for batch in batches:
        expected, found = reference(batch), other(batch)
        if found.keys() != expected.keys():
            raise ExportError(
                f"The file gives {', '.join(sorted(found)) or 'no output'}, and the model "
                f"{', '.join(sorted(expected))}. Nothing was written."
            )
        for name, array in expected.items():
            if found[name].shape != array.shape or not np.isfinite(found[name]).all():
                raise ExportError(
                    f"The file's {name} has the shape {found[name].shape} or is not finite; the model's has "
                    f"the shape {array.shape}. Nothing was written."
                )
            pairs.setdefault(name, []).append((array, found[name]))
    if not pairs:
        raise ExportError("There is no output to compare the file by. Nothing was written.")
    return [_comparison(name, pair, classifier) for name, pair in pairs.items()]


def own_noise(
    model: PreTrainedModel,
    reference: Run,
    batches: Iterable[dict[str, Tensor]],
    classifier: PreTrainedConfig | None = None,
    rounding: float = JITTER,
    expected: Run | None = None,
) -> list[OutputComparison]:
    """Compare the model with itself where sums are rounded otherwise: the largest of several differences.

    A last bit moves some values to the neighbouring level, and every layer carries that on. No engine,
    which adds in another order, can be closer than that but by chance. One such run may move nothing at all,
    in small models above all, so there are several: the toolkit's two arithmetics, which differ in the last
    bit alone, and `JITTERS` with as much as the order of a sum changes added to what every quantizer of an
    activation sees: `rounding` of the tensor's largest magnitude, which is more where the file computes in
    another type than fp32. `expected` gives what `reference` does as the model is, where that is known.
    """
    batches, expected = list(batches), expected or remembered(reference)
    runs = [_other_arithmetic(model, reference)]
    runs += [_jittered(model, reference, seed, rounding) for seed in range(JITTERS)]
    found = [compare(expected, run, batches, classifier) for run in runs]
    return [
        OutputComparison(
            same[0].output,
            max(one.mean for one in same),
            max(one.largest for one in same),
            same[0].predictions,
            max(one.changed for one in same),
        )
        for same in zip(*found, strict=True)
    ]


def _other_arithmetic(model: PreTrainedModel, reference: Run) -> Run:
    def run(batch: dict[str, Tensor]) -> dict[str, Array]:
        quantizers = [quantizer for _, quantizer in named_quantizers(model)]
        try:
            for quantizer in quantizers:
                quantizer.use_fb_fake_quant = not TensorQuantizer.use_fb_fake_quant
            return reference(batch)
        finally:
            for quantizer in quantizers:
                del quantizer.use_fb_fake_quant

    return run


def _jittered(model: PreTrainedModel, reference: Run, seed: int, rounding: float) -> Run:
    def run(batch: dict[str, Tensor]) -> dict[str, Array]:
        generator = torch.Generator().manual_seed(seed)

        def jitter(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            values, *others = inputs
            noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
            return (values + rounding * values.abs().amax() * noise, *others)

        with ExitStack() as stack:
            for path, quantizer in named_quantizers(model):
                if not path.endswith(WEIGHT):
                    stack.callback(quantizer.register_forward_pre_hook(jitter).remove)
            return reference(batch)

    return run


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
                f"and {comparison.changed} of {counted(comparison.predictions, 'prediction')} differ "
                f"(allowed: {changed:.0f}). Nothing was written. To have the file all the same, and measure "
                f"it by eval: {spelled('check=False', '--no-check')}."
            )


def _comparison(
    name: str, pairs: list[tuple[Array, Array]], classifier: PreTrainedConfig | None
) -> OutputComparison:
    step = max(float(np.abs(expected).max()) for expected, _ in pairs) / STEPS or 1.0
    differences = np.concatenate([np.abs(np.subtract(a, b)).ravel() for a, b in pairs]) / step
    predicted = [(_rows(one), _rows(two)) for one, two in pairs] if is_known(name) else []
    changed = count = 0
    if predicted:
        means = meaning_of(name, predicted[0][0].shape[-1], classifier)
        if means == "scores":  # which text comes before which is told by all of them together
            predicted = [(torch.cat([one for one, _ in predicted]), torch.cat([two for _, two in predicted]))]
        look = orders if means == "scores" else partial(predictions, means)
        for one, two in predicted:
            before, after = look(one), look(two)
            if before is not None and after is not None:
                count, changed = count + before.numel(), changed + int((before != after).sum())
    return OutputComparison(name, float(differences.mean()), float(differences.max()), count, changed)


def _rows(values: Array) -> Tensor:
    """Return an output's distributions or scores: shape `(rows, outcomes)`."""
    return torch.from_numpy(values.astype(np.float32)).flatten(0, -2)
