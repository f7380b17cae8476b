"""What outputs mean, how far apart they are, and what they predict."""

import math

import models
import pytest
import torch
from torch import Tensor

from qdqpatch.errors import ConfigError
from qdqpatch.tasks.head import (
    classifier_of,
    divergence,
    meaning_of,
    orders,
    predictions,
    problem_of,
)

SEQUENCES = "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_labels": 3}, "single_label_classification"),
        ({"num_labels": 1}, "regression"),
        ({"num_labels": 3, "problem_type": "regression"}, "regression"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "multi_label_classification"),
    ],
)
def test_config_says_what_a_classifier_solves(changes: dict, problem: str) -> None:
    config = models.config(SEQUENCES, **changes)
    assert problem_of(config) == problem
    means = {"regression": "scores", "multi_label_classification": "labels"}.get(problem, "classes")
    assert meaning_of("logits", config.num_labels, config) == means


def test_other_problems_are_refused() -> None:
    config = models.config(SEQUENCES)
    config.problem_type = "ranking"
    with pytest.raises(
        ConfigError, match=r"problem_type in config\.json is 'ranking'; it can be regression, "
    ):
        problem_of(config)


def test_the_problem_is_that_of_classifiers_of_texts_alone() -> None:
    name = "BertForMultipleChoice"
    model = models.build(name, problem_type="multi_label_classification")
    assert meaning_of("logits", 3, classifier_of(model)) == "classes"
    assert meaning_of("start_logits", 9) == "positions"
    assert meaning_of("last_hidden_state", 24) == "states"
    assert meaning_of("logits", 1) == "scores"  # a softmax of one is always 1


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_of_labels_is_that_of_each(temperature: float) -> None:
    a, b = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[0.3, -2.0, 0.5]])
    p, q = ((logits.double() / temperature).sigmoid()[0].tolist() for logits in (a, b))
    expected = temperature**2 * sum(map(kl, p, q))
    found = divergence("labels", a.double(), b.double(), temperature)
    assert found.tolist() == pytest.approx([expected], rel=1e-12)


def test_divergence_sees_what_a_softmax_does_not() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert divergence("labels", logits, logits + 3).min() > 0.1
    assert divergence("classes", logits, logits + 3).max() < 1e-5
    single = logits[:, :1]
    assert divergence("scores", single, single + 3).tolist() == pytest.approx([9] * 5, rel=1e-5)
    assert divergence("classes", single, single + 3).tolist() == [0] * 5


@pytest.mark.parametrize("means", ["classes", "labels", "scores", "positions", "states"])
def test_the_same_is_not_apart_and_has_gradients(means: str) -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert divergence(means, rows, rows).abs().max() < 1e-15
    other = (rows + 1 + torch.arange(4)).requires_grad_()
    divergence(means, rows, other).sum().backward()
    assert other.grad.isfinite().all()
    assert other.grad.abs().max() > 1e-3


def test_positions_that_cannot_be_count_for_nothing() -> None:
    hidden = torch.tensor([[1.0, 2.0, -torch.inf]])
    other = torch.tensor([[2.0, 1.0, -torch.inf]])
    assert divergence("positions", hidden, other).item() == pytest.approx(
        divergence("positions", hidden[:, :2], other[:, :2]).item(), rel=1e-6
    )


def test_predictions_and_orders() -> None:
    rows = torch.tensor([[1.0, -2.0], [-1.0, 3.0]])
    assert predictions("classes", rows).tolist() == [0, 1]
    assert predictions("labels", rows).tolist() == [[1, 0], [0, 1]]
    assert predictions("scores", rows) is None
    assert predictions("states", rows) is None
    scores: Tensor = torch.tensor([[1.0], [3.0], [3.0]])
    assert orders(scores).tolist() == [[-1], [-1], [0]]
