import numpy as np
import pytest
from scipy.stats import kendalltau

from qdqpatch.evaluation.bootstrap import interval
from qdqpatch.tasks.ranking import KendallTau, ndcg, order_metrics


def test_tau_over_samples() -> None:
    generator = np.random.default_rng(0)
    own, reference = generator.normal(size=(2, 3, 20))
    metric = KendallTau("tau", own[0], reference[0])
    assert metric.figures(own, reference) == pytest.approx(
        [kendalltau(a, b).statistic for a, b in zip(own, reference, strict=True)]
    )
    assert KendallTau("tau", np.zeros(3), np.arange(3.0)).value == 0
    low, high = interval(metric) or (1, 0)
    assert low < metric.value < high


def test_ndcg() -> None:
    gains = np.array([3.0, 2.0, 0.0])
    assert ndcg(np.array([9.0, 8.0, 7.0]), gains) == 1
    found = ndcg(np.array([7.0, 8.0, 9.0]), gains)  # the worst order
    ideal = 3 / np.log2(2) + 2 / np.log2(3)
    assert found == pytest.approx((2 / np.log2(3) + 3 / np.log2(4)) / ideal)


def test_the_order_within_queries() -> None:
    reference = np.array([1.0, 2.0, 3.0, 10.0, 20.0])
    own = np.array(
        [1.0, 3.0, 2.0, 110.0, 120.0]
    )  # another order in the first query, all of the second higher
    drift, tau, gain = order_metrics(own, reference, ["a", "a", "a", "b", "b"])
    assert (drift.name, drift.value) == ("drift of scores", pytest.approx((0 + 1 + 1 + 100 + 100) / 5))
    assert (tau.name, tau.value) == ("Kendall's tau", pytest.approx((1 / 3 + 1) / 2))
    assert gain.name == "nDCG@10"
    assert 0.9 < gain.value < 1
    _, alone = order_metrics(own, reference, range(5))
    assert (alone.name, alone.value) == ("Kendall's tau", pytest.approx(0.8))


def test_scores_without_an_order_say_nothing_of_it() -> None:
    reference = np.array([1.0, 2.0, 5.0, 5.0])
    _, tau, _ = order_metrics(reference, reference, ["a", "a", "b", "b"])
    assert tau.value == 1


def test_labels_say_what_is_relevant() -> None:
    *_, gain = order_metrics(
        np.array([2.0, 1.0]), np.array([1.0, 2.0]), ["a", "a"], gains=np.array([1.0, 0.0])
    )
    assert gain.value == 1
    assert len(order_metrics(np.ones(2), np.ones(2), ["a", "a"], gains=np.zeros(2))) == 2
