import math
import sys

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from qdqpatch.errors import ConfigError, DataError
from qdqpatch.tasks.libraries import metric_library
from qdqpatch.tasks.metrics import Correlation, Ratio, decimal, label_metrics, mean, score_metrics


def test_value_is_the_ratio_of_sums() -> None:
    metric = Ratio("F1", np.array([1.0, 0.0, 2.0]), np.array([2.0, 1.0, 5.0]))
    assert metric.value == 37.5
    assert str(metric) == "37.50"
    assert metric.higher_is_better


def test_mean_and_its_units() -> None:
    assert mean("accuracy", [1.0, 0.0]).value == 50
    cosine = mean("cosine", [1.0, 0.5], in_percent=False)
    assert (cosine.value, str(cosine)) == (0.75, "0.7500")


def test_exponential_of_the_ratio() -> None:
    metric = Ratio("perplexity", np.array([4.0, 2.0]), np.array([1.0, 2.0]), False, exponential=True)
    assert metric.value == math.exp(2)
    assert str(metric) == "7.39"
    assert not metric.higher_is_better


def test_figures_of_several_samples_and_of_nothing() -> None:
    metric = Ratio("F1", np.zeros(1), np.zeros(1))
    assert metric.value == 0
    assert metric.of(np.array([1.0, 3.0, 0.0]), np.array([2.0, 4.0, 0.0])).tolist() == [50, 75, 0]


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(ConfigError) as caught:
        metric_library("seqeval")
    assert str(caught.value) == "The metric needs seqeval: pip install seqeval"


def draw(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("of_ranks", [False, True])
def test_correlations_are_scipys(of_ranks: bool) -> None:
    predicted, true = draw(40, 1, seed=0), draw(40, 1, seed=1).round(1)  # with ties
    expected = (spearmanr if of_ranks else pearsonr)(predicted[:, 0], true[:, 0]).statistic
    found = Correlation("r", predicted, true, of_ranks)
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert str(found) == f"{expected:.4f}"
    rows = np.random.default_rng(2).integers(0, 40, (5, 40))
    drawn = found.figures(*(column[rows] for column in found.columns))
    again = [Correlation("r", predicted[row], true[row], of_ranks).value for row in rows]
    assert drawn.tolist() == pytest.approx(again, rel=1e-12)


def test_correlations_of_several_numbers_and_of_equal_ones() -> None:
    predicted, true = draw(20, 2, seed=0), draw(20, 2, seed=1)
    apart = [Correlation("r", predicted[:, [place]], true[:, [place]]).value for place in (0, 1)]
    assert Correlation("r", predicted, true).value == pytest.approx(sum(apart) / 2, rel=1e-12)
    assert Correlation("r", np.full((20, 1), 0.1), true[:, :1]).value == 0


def test_metrics_of_scores() -> None:
    outputs = [{"logits": np.array([value], np.float32)} for value in (1, 2, 4)]
    error, pearson, spearman = score_metrics(outputs, [(1.0,), (3.0,), (2.0,)])
    assert (error.value, error.higher_is_better) == (5 / 3, False)
    assert (pearson.name, spearman.name, spearman.value) == ("Pearson", "Spearman", 0.5)
    with pytest.raises(DataError, match="All 3 labels are 2, and nothing correlates with that"):
        score_metrics(outputs, [(2.0,)] * 3)


def test_metrics_of_several_labels() -> None:
    outputs = [{"logits": np.array(row, np.float32)} for row in ([2, -1, 1], [-1, -1, 3])]
    exact, f1 = label_metrics(outputs, [(1, 0, 1), (1, 0, 1)])
    assert (exact.name, exact.value) == ("all labels right", 50)
    assert f1.value == pytest.approx(100 * 2 * 3 / (3 + 4))  # 3 right, 3 found, 4 wanted


def test_numbers_fit_into_tables() -> None:
    assert decimal(12.345, 2) == "12.35"
    assert decimal(-9999999, 4, "+") == "-9999999.0000"
    assert decimal(5e59, 4) == "5.000e+59"
    assert decimal(float("nan"), 4) == "nan"
