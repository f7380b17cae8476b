"""Costs against the formulas written out, for each kind of output, with and without padding."""

import math
from typing import Any

import models
import pytest
import torch
from torch import Tensor

from qdqpatch.sensitivity import cost
from qdqpatch.sensitivity.cost import Cost, rows_of
from qdqpatch.tasks import TASKS

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

# Both sides are computed in fp64 from the same fp32 logits.
EXACT = 1e-12


def task(name: str, **changes: Any) -> Any:
    """Return a task without a tokenizer, which costs do not need."""
    found = TASKS[name].__new__(TASKS[name])
    found.config = models.config(**changes)
    return found


def logits(*shape: int, seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kl(first: Tensor, second: Tensor) -> float:
    """Sum p log(p / q) over the outcomes of one distribution."""
    p = [math.exp(logit) for logit in first.tolist()]
    q = [math.exp(logit) for logit in second.tolist()]
    return sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))


def cost_of(name: str, outputs: dict[str, tuple[Tensor, Tensor]], mask: Tensor = MASK) -> float:
    found = Cost(task(name))
    expected, actual = ({key: output[place] for key, output in outputs.items()} for place in (0, 1))
    found.add(expected, actual, mask)
    return found.value


def test_classes() -> None:
    first, second = logits(2, 3, seed=1), logits(2, 3, seed=2)
    expected = (kl(first[0], second[0]) + kl(first[1], second[1])) / 2
    assert cost_of("text-classification", {"logits": (first, second)}) == pytest.approx(expected, rel=EXACT)


def test_positions_of_start_and_end_are_added_and_padding_left_out() -> None:
    pairs = {name: (logits(2, 4, seed=i), logits(2, 4, seed=9 + i)) for i, name in enumerate(NAMES)}
    expected = 0.0
    for first, second in pairs.values():
        expected += (kl(first[0], second[0]) + kl(first[1, :2], second[1, :2])) / 2
    assert cost_of("question-answering", pairs) == pytest.approx(expected, rel=EXACT)


NAMES = ("start_logits", "end_logits")


@pytest.mark.parametrize("name", ["token-classification", "fill-mask"])
def test_the_mean_over_tokens_leaves_padding_out(name: str) -> None:
    first, second = logits(2, 4, 5, seed=1), logits(2, 4, 5, seed=2)
    data = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    expected = sum(kl(first[place], second[place]) for place in data) / 6
    assert cost_of(name, {"logits": (first, second)}) == pytest.approx(expected, rel=EXACT)


def test_states_are_pooled_before_they_are_compared() -> None:
    first, second = logits(2, 4, 5, seed=1), logits(2, 4, 5, seed=2)
    expected = 0.0
    for row, length in ((0, 4), (1, 2)):
        a, b = (states[row, :length].double().mean(0) for states in (first, second))
        expected += (1 - float(a @ b / (a.norm() * b.norm()))) / 2
    found = cost_of("feature-extraction", {"last_hidden_state": (first, second)})
    assert found == pytest.approx(expected, rel=1e-6)  # the mean is taken in fp32


def test_batches_count_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ROWS", 2)
    first, second = logits(5, 3, seed=1), logits(5, 3, seed=2)
    found = Cost(task("text-classification"))
    for part in (slice(0, 3), slice(3, 4), slice(4, 5)):
        found.add({"logits": first[part]}, {"logits": second[part]}, MASK)
    expected = sum(kl(a, b) for a, b in zip(first, second, strict=True)) / 5
    assert found.value == pytest.approx(expected, rel=EXACT)


def test_equal_outputs_cost_nothing() -> None:
    for name, shape in (("text-classification", (2, 3)), ("token-classification", (2, 4, 5))):
        same = logits(*shape, seed=1)
        assert cost_of(name, {"logits": (same, same.clone())}) == 0


def test_padding_is_never_the_likeliest_position() -> None:
    high = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 9.0, 9.0]], dtype=torch.float16)
    rows = rows_of("start_logits", high, task("question-answering"), MASK)
    assert rows.argmax(-1).tolist() == [1, 0]
    assert rows.dtype == torch.float32
