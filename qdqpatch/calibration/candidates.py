"""How well candidate ranges preserve the result of each operation, measured on batches held back."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdqpatch.calibration.methods import PERCENTILES
from qdqpatch.calibration.padding import Padding
from qdqpatch.calibration.statistics import Statistics
from qdqpatch.nn.names import RESIDUAL
from qdqpatch.nn.quantizer import TensorQuantizer

STEP = 2**0.5
"""The largest ratio of one range to the next smaller one."""

POWER = 2
"""Of a position's error: one ruined token, such as the [CLS] that all others attend to, does more harm than a
little noise on all."""

RESIDUAL_POWER = 4
"""The same in a residual add, which hands its result to every later layer. Both were chosen by the divergence
of the logits on held-out training data of SQuAD."""

SMALLEST_NORM = 1e-30
"""Of a result that errors are relative to: one that is 0 has an error of its own."""


def candidates(statistics: Statistics) -> dict[str, list[float]]:
    """Return the ranges to compare for each histogram, in rising order.

    They are those that the methods choose, each once, and magnitudes in between: where a few outliers are a
    hundred times as large as the rest, the methods leave a gap that the best range may lie in.
    """
    found = [statistics.ranges(method) for method in ("max", "mse", "entropy")]
    found += [statistics.ranges("percentile", share) for share in PERCENTILES]
    with_histogram = [path for path, tensor in statistics.items() if tensor.channel_amax is None]
    return {path: _filled({float(ranges[path]) for ranges in found}) for path in with_histogram}


def _filled(ranges: set[float]) -> list[float]:
    """Return the ranges in rising order, with steps of at most `STEP` between them."""
    rising = sorted(ranges)
    filled = rising[:1]
    for low, high in itertools.pairwise(rising):
        steps = math.ceil(math.log(high / low, STEP)) if low else 1
        filled += [low * (high / low) ** (step / steps) for step in range(1, steps)]
        filled.append(high)
    return filled


def stages(paths: Iterable[str]) -> list[list[str]]:
    """Return the quantizers to compare in turn: the first of every module, then the second, and so on."""
    by_module: dict[str, list[str]] = {}
    for path in paths:
        by_module.setdefault(path.rpartition(".")[0], []).append(path)
    return [
        [path for path in row if path] for row in itertools.zip_longest(*by_module.values(), fillvalue="")
    ]


class OperationComparison:
    """Repeats every operation of a float model with one of its operands quantized to each candidate range.

    An operation is a module with quantizers: a Linear, an attention, or a block with a residual add, whose
    result is that of its LayerNorm. Operands of it that were compared before are quantized to the range
    chosen for them, because two ranges that each do no harm alone may do together.

    Args:
        ranges: The candidates, by the path of the quantizers that are compared now.
        chosen: The ranges of those that were compared before, by path.

    Attributes:
        padding: What of the batch that comes is data; None if everything is.
        errors: The errors so far, float64, shape `(candidates,)`, by quantizer path.
    """

    def __init__(self, ranges: Mapping[str, list[float]], chosen: Mapping[str, float]) -> None:
        self.padding: Padding | None = None
        self._ranges = ranges
        self._chosen = chosen
        self.errors: dict[str, Tensor] = {}
        self._repeating = False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Compare whenever the model runs inside the block."""
        hooks = []
        for path, module in model.named_modules():
            paths = {name: f"{path}.{name}" for name, _ in module.named_children()}
            mine = {
                name: quantizer
                for name, quantizer in paths.items()
                if quantizer in self._ranges or quantizer in self._chosen
            }
            if self._compared(mine):
                hook = functools.partial(self._compare, mine)
                hooks.append(module.register_forward_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    def _compare(
        self,
        paths: Mapping[str, str],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if self._repeating:
            return
        self._repeating = True
        expected = _result(output)
        try:
            with ExitStack() as quantizing:
                for name in paths.keys() - self._compared(paths):
                    amax = self._chosen[paths[name]]
                    quantizing.enter_context(_quantizing(getattr(module, name), amax, expected.device))
                for name in self._compared(paths):
                    power = RESIDUAL_POWER if hasattr(module, RESIDUAL) else POWER
                    errors = []
                    for amax in self._ranges[paths[name]]:
                        with _quantizing(getattr(module, name), amax, expected.device):
                            result = _result(module.forward(*args, **kwargs))
                            errors.append(self._error(result, expected, power))
                    before = self.errors.get(paths[name])
                    self.errors[paths[name]] = torch.stack(errors) + (0 if before is None else before)
        finally:
            self._repeating = False

    def _compared(self, paths: Mapping[str, str]) -> set[str]:
        return {name for name, path in paths.items() if path in self._ranges}

    def _error(self, result: Tensor, expected: Tensor, power: int) -> Tensor:
        """Return the sum over the positions that are data of a power of their relative squared errors.

        Relative to each position's expected result, because what follows is a LayerNorm or a softmax: an
        outlier token's large values count for no more than another token's. A result smaller than the
        median counts as large as that.
        """
        error = (result - expected).float().square_().sum(-1, keepdim=True)
        norm = expected.float().square().sum(-1, keepdim=True)
        if self.padding is not None:
            (error, _), (norm, _) = self.padding.data(error, ""), self.padding.data(norm, "")
        floor = norm.median() if norm.numel() else 0.0
        return (error / norm.clamp(min=floor).clamp(min=SMALLEST_NORM)).double().pow(power).sum()


@contextmanager
def _quantizing(quantizer: TensorQuantizer, amax: float, device: torch.device) -> Iterator[None]:
    """Turn a quantizer on with a range that is not its own."""
    before = None if quantizer.amax is None else quantizer.amax.clone()
    quantizer.load_range(torch.full((), amax, device=device))
    quantizer._if_quant = True
    try:
        yield
    finally:
        quantizer._if_quant = False
        if before is None:
            quantizer.drop_range()
        else:
            quantizer.load_range(before)


def _result(output: Any) -> Tensor:
    """Return the tensor that a module computes; attention gives its probabilities after it."""
    first = output if isinstance(output, Tensor) else output[0]
    assert isinstance(first, Tensor)
    return first
