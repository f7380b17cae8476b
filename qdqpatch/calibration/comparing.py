"""Repeat every operation of a float model with an operand quantized to each candidate range, where it runs.

An operation is what quantizers stand on: a Linear or an attention, which is a module of its own and is called
again; or an add or a product inside a module's `forward`, of which the two operands are taken from its
quantizers and nothing else runs again, however large the module is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdqpatch.calibration.padding import Padding
from qdqpatch.calibration.statistics import TensorStatistics
from qdqpatch.errors import CalibrationError
from qdqpatch.nn.names import MATMUL
from qdqpatch.nn.quantizer import TensorQuantizer
from qdqpatch.rules.rewriting import Wrap

POWER = 2
"""Of a position's error: one ruined token, such as the [CLS] that all others attend to, does more harm than a
little noise on all."""

RESIDUAL_POWER = 4
"""The same in a residual add, which hands its result to every later layer. Both were chosen by the divergence
of the logits on held-out training data of SQuAD."""

SMALLEST_NORM = 1e-30
"""Of a result that errors are relative to: one that is 0 has an error of its own."""


class OperationComparison:
    """Measures how far candidate ranges move the results of operations while a float model runs.

    Operands that were compared before are quantized to the range chosen for them, because two ranges that
    each do no harm alone may do together. A residual add is judged by the norm that reads it, if one does.

    Args:
        ranges: The candidates, by the path of the quantizers that are compared now.
        chosen: The ranges of those that were compared before, by path.
        statistics: What the quantizers saw, which makes intervals of ranges that are not symmetric; None
            where all are.

    Attributes:
        padding: What of the batch that comes is data; None if everything is.
        errors: The errors so far, float64, shape `(candidates,)`, by quantizer path.
    """

    def __init__(
        self,
        ranges: Mapping[str, list[float]],
        chosen: Mapping[str, float],
        statistics: Mapping[str, TensorStatistics] | None = None,
    ) -> None:
        self._statistics = statistics or {}
        self.padding: Padding | None = None
        self._ranges = ranges
        self._chosen = chosen
        self.errors: dict[str, Tensor] = {}
        self._repeating = False

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Compare whenever the model runs inside the block.

        Raises:
            CalibrationError: If a quantizer sees NaN or infinity meanwhile.
        """
        with ExitStack() as stack:
            for path, module in model.named_modules():
                paths = {name: f"{path}.{name}" for name in module._modules}
                known = {
                    name: quantizer
                    for name, quantizer in paths.items()
                    if quantizer in self._ranges or quantizer in self._chosen
                }
                for name in self._compared(known):
                    check = functools.partial(self._check_finite, paths[name], name)
                    stack.callback(module.get_submodule(name).register_forward_pre_hook(check).remove)
                for wrap in getattr(type(module), "changes", ()):
                    if isinstance(wrap, Wrap):
                        mine = {name: known.pop(name) for name in wrap.quantizers if name in known}
                        if self._compared(mine):
                            stack.enter_context(self._watching_operands(module, wrap, mine))
                if self._compared(known):
                    hook = functools.partial(self._compare_module, known)
                    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            yield

    @contextmanager
    def _watching_operands(self, module: nn.Module, wrap: Wrap, paths: Mapping[str, str]) -> Iterator[None]:
        """Compare an operation of a module's `forward` by its two operands."""
        quantizers = {name: module.get_submodule(name) for name in wrap.quantizers}
        is_add = wrap.kind == "residual add"
        operands: dict[str, Tensor] = {}

        def take(name: str, _: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
            if not self._repeating:
                operands[name] = given[0]

        def judge(norm: nn.Module | None) -> None:
            first, second = (operands.pop(name) for name in wrap.quantizers)

            def run() -> Tensor:
                a, b = (
                    quantizer.forward(operand)
                    for quantizer, operand in zip(quantizers.values(), (first, second), strict=True)
                )
                result: Tensor = a + b if is_add else torch.matmul(a, b)
                return result if norm is None else _result(norm.forward(result))

            self._repeat(quantizers, paths, run(), run, is_add)

        def at_norm(norm: nn.Module, given: tuple[Any, ...]) -> None:
            if self._repeating or len(operands) < len(quantizers) or not given:
                return
            first, second = operands.values()
            total = first + second
            if isinstance(given[0], Tensor) and torch.equal(total, given[0]):
                judge(norm)

        def at_end(_: nn.Module, __: Any, ___: Any) -> None:
            if not self._repeating and len(operands) == len(quantizers):
                judge(None)
            operands.clear()

        with ExitStack() as stack:
            for name, quantizer in quantizers.items():
                stack.callback(quantizer.register_forward_hook(functools.partial(take, name)).remove)
            norms = [child for child in module.children() if type(child).__name__.endswith("Norm")]
            for norm in norms if is_add else ():
                stack.callback(norm.register_forward_pre_hook(at_norm).remove)
            stack.callback(module.register_forward_hook(at_end).remove)
            yield

    def _compare_module(
        self,
        paths: Mapping[str, str],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if not self._repeating:
            self._repeat(
                dict(module.named_children()),
                paths,
                _result(output),
                lambda: _result(module.forward(*args, **kwargs)),
                is_add=False,
            )

    def _repeat(
        self,
        quantizers: Mapping[str, nn.Module],
        paths: Mapping[str, str],
        expected: Tensor,
        run: Callable[[], Tensor],
        is_add: bool,
    ) -> None:
        """Add the errors of an operation that `run` repeats, for every operand that is compared."""
        self._repeating = True
        try:
            with ExitStack() as quantizing:
                for name in paths.keys() - self._compared(paths):
                    interval = self._interval(paths[name], self._chosen[paths[name]])
                    quantizing.enter_context(_quantizing(quantizers[name], interval.to(expected.device)))
                for name in self._compared(paths):
                    errors = []
                    for amax in self._ranges[paths[name]]:
                        interval = self._interval(paths[name], amax).to(expected.device)
                        with _quantizing(quantizers[name], interval):
                            power = RESIDUAL_POWER if is_add else POWER
                            errors.append(self._error(run(), expected, power))
                    before = self.errors.get(paths[name])
                    self.errors[paths[name]] = torch.stack(errors) + (0 if before is None else before)
        finally:
            self._repeating = False

    def _interval(self, path: str, amax: float) -> Tensor:
        seen, magnitude = self._statistics.get(path), torch.tensor(amax)
        return magnitude if seen is None else seen.interval(magnitude)

    def _compared(self, paths: Mapping[str, str]) -> set[str]:
        return {name for name, path in paths.items() if path in self._ranges}

    def _check_finite(self, path: str, name: str, _: nn.Module, given: tuple[Tensor]) -> None:
        if not self._repeating:
            data = given[0] if self.padding is None else self.padding.data(given[0], name)[0]
            if not bool(data.isfinite().all()):
                raise CalibrationError(
                    f"{path} saw NaN or infinity, so it has no range. Check weights and inputs."
                )

    def _error(self, result: Tensor, expected: Tensor, power: int) -> Tensor:
        """Return the sum over the positions that are data of a power of their relative squared errors.

        Relative to each position's expected result, because what follows is a LayerNorm or a softmax: an
        outlier token's large values count for no more than another token's. A result smaller than the
        median counts as large as that.
        """
        error = (result - expected).float().square_().sum(-1, keepdim=True)
        norm = expected.float().square().sum(-1, keepdim=True)
        if self.padding is not None:
            # A product of heads has its positions where query has them.
            layout = MATMUL["q"] if result.dim() == 4 else ""
            (error, _), (norm, _) = self.padding.data(error, layout), self.padding.data(norm, layout)
        floor = norm.median() if norm.numel() else 0.0
        return (error / norm.clamp(min=floor).clamp(min=SMALLEST_NORM)).double().pow(power).sum()


@contextmanager
def _quantizing(quantizer: nn.Module, interval: Tensor) -> Iterator[None]:
    """Turn a quantizer on with a range that is not its own."""
    assert isinstance(quantizer, TensorQuantizer), "the paths are those of quantizers"
    before = None if quantizer.interval is None else quantizer.interval.clone()
    quantizer.load_range(interval)
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
