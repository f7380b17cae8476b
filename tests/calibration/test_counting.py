"""Counting many tensors together, as devices do that take longer to begin an operation than to do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AlbertConfig, AlbertModel, BertModel, PreTrainedModel

import qdqpatch
from qdqpatch.calibration import Statistics, collect, observing
from qdqpatch.calibration.counting import KEPT_BYTES, BatchCounts
from qdqpatch.calibration.histogram import SMALLEST_EXPONENT, Histogram

MOST = 3
"""Operations of collection, to those of the float model: what a launch-bound device may take longer."""


class Operations(TorchDispatchMode):
    """Counts what PyTorch dispatches."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


def operations(run: Callable[[], object]) -> int:
    with torch.no_grad(), Operations() as counted:
        run()
    return counted.count


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a CPU keep tensors to count them together, as other devices do."""

    def keeping(kept_bytes: int) -> None:
        monkeypatch.setattr(observing, "BatchCounts", lambda padding: BatchCounts(padding, kept_bytes))

    return keeping


def assert_same(actual: Statistics, expected: Statistics) -> None:
    for path, tensor in expected.items():
        assert np.array_equal(actual[path].counts, tensor.counts), path
        assert (actual[path].amax, actual[path].width) == (tensor.amax, tensor.width), path


def bert() -> PreTrainedModel:
    return qdqpatch.quantize(BertModel(models.config(num_hidden_layers=12)).eval())


def albert() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    return qdqpatch.quantize(AlbertModel(AlbertConfig(vocab_size=99, embedding_size=8, **sizes)).eval())


def double_input(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    args[0].mul_(2)


@pytest.mark.parametrize("kept_bytes", [KEPT_BYTES, 3000], ids=["a batch", "a few tensors"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("build", [bert, albert], ids=["bert", "one layer used three times"])
def test_counting_together_gives_what_counting_at_once_gives(
    build: Callable[[], PreTrainedModel], padded: bool, kept_bytes: int, keep: Callable[[int], None]
) -> None:
    model = build()
    batches = [models.inputs(seed=seed, padded=padded) for seed in range(2)]
    expected = collect(model, batches)
    keep(kept_bytes)
    assert_same(collect(model, batches), expected)


def test_a_tensor_that_the_model_changes_later_counts_as_it_was_seen(keep: Callable[[int], None]) -> None:
    model = models.uncalibrated()
    model.encoder.layer[0].attention.self.query.register_forward_hook(double_input)
    batches = [models.inputs(padded=False)]
    expected = collect(model, batches)
    keep(KEPT_BYTES)
    assert_same(collect(model, batches), expected)


@pytest.mark.parametrize("padded", [True, False])
def test_few_operations_are_dispatched(padded: bool, keep: Callable[[int], None]) -> None:
    model = bert()
    batch = models.inputs(padded=padded)
    float_model = BertModel(models.config(num_hidden_layers=12)).eval()
    forward = operations(lambda: float_model(**batch))
    keep(KEPT_BYTES)
    # What is done once, however many batches there are, is not of interest.
    one, two = (operations(lambda count=count: collect(model, [batch] * count)) for count in (1, 2))
    assert two - one <= MOST * forward


def test_rows_are_counted_as_they_would_be_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    scales = torch.tensor([0.0, 1e-38, 2.0**-28, 2.0 ** (SMALLEST_EXPONENT + 12), 1, 3, 1e6, torch.inf])
    values = torch.randn(len(scales), 500, generator=generator) * scales.unsqueeze(1)
    values[0, 0] = torch.nan
    hidden: list[Tensor | int] = [0, 1, torch.tensor(2), 0, 0, 0, 0, 0]
    for row, zeros, found in zip(values, hidden, Histogram.of_rows(values, hidden), strict=True):
        alone = Histogram.of(row, zeros)
        assert torch.equal(found.amax, alone.amax)
        assert torch.equal(found.exponent, alone.exponent)
        if found.amax.isfinite():
            assert torch.equal(found.counts, alone.counts)
