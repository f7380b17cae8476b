"""Changes of weights that promise to keep the float function, and are taken back if they do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdqpatch import distributed
from qdqpatch.calibration.observing import observing, on_device
from qdqpatch.calibration.undo import restored_if_raised
from qdqpatch.errors import CalibrationWarning
from qdqpatch.patching.arguments import run


class FirstKept:
    """Batches that keep the first one that was taken.

    Attributes:
        first: That batch; None before, or if there is none.
    """

    def __init__(self, batches: Iterable[Mapping[str, Any]]) -> None:
        self._batches = batches
        self.first: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self._batches:
            self.first = batch if self.first is None else self.first
            yield batch


def change_keeping_function(
    model: PreTrainedModel,
    parameters: Iterable[nn.Parameter],
    change: Callable[[], None],
    batch: Mapping[str, Any] | None,
    step: str,
) -> None:
    """Make a change, and take it back with a `CalibrationWarning` if the float outputs on a batch differ.

    They differ if any is further from what it was than the square root of its dtype's precision, relative to
    the largest: rounding stays far below that, and a model that mixes or bends channels where the change
    supposes that it does not is far above.

    Args:
        model: A quantized model.
        parameters: What the change may change, beside ranges.
        change: Makes it, in place.
        batch: Keyword arguments for the model; None if this process has none.
        step: What the change is called, such as `"Smoothing"`.
    """
    before = _float_outputs(model, batch)
    try:
        with restored_if_raised(model, parameters):
            change()
            differs = distributed.together(
                lambda: torch.tensor(float(_differ(before, _float_outputs(model, batch)))), model.device
            )
            if bool(distributed.sum_over_processes({"": differs}, model.device)[""]):
                raise _FunctionChangedError
    except _FunctionChangedError:
        warnings.warn(
            f"{step} was taken back: it would change what the float {type(model).__name__} computes, because "
            "something between its Linears mixes or bends channels.",
            CalibrationWarning,
            stacklevel=3,
        )


class _FunctionChangedError(Exception):
    """The float model does not compute what it did."""


def _float_outputs(model: PreTrainedModel, batch: Mapping[str, Any] | None) -> list[Tensor]:
    if batch is None:
        return []
    with observing(model, {}), torch.no_grad():
        return list(_tensors(run(model, on_device(batch, model.device))))


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a model's output; a cache is left out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _differ(before: list[Tensor], after: list[Tensor]) -> bool:
    for old, new in zip(before, after, strict=True):
        usable = old.isfinite()
        old, new = old[usable].double(), new[usable].double()
        limit = torch.finfo(before[0].dtype).eps ** 0.5
        if old.numel() and not bool((new - old).abs().max() <= limit * old.abs().max()):
            return True
    return False
