import math
import sys

import numpy as np
import pytest

from qdqpatch.errors import ConfigError
from qdqpatch.tasks.libraries import metric_library
from qdqpatch.tasks.metrics import Metric, mean


def test_value_is_the_ratio_of_sums() -> None:
    metric = Metric("F1", np.array([1.0, 0.0, 2.0]), np.array([2.0, 1.0, 5.0]))
    assert metric.value == 37.5
    assert str(metric) == "37.50"
    assert metric.higher_is_better


def test_mean_and_its_units() -> None:
    assert mean("accuracy", [1.0, 0.0]).value == 50
    cosine = mean("cosine", [1.0, 0.5], in_percent=False)
    assert (cosine.value, str(cosine)) == (0.75, "0.7500")


def test_exponential_of_the_ratio() -> None:
    metric = Metric("perplexity", np.array([4.0, 2.0]), np.array([1.0, 2.0]), False, exponential=True)
    assert metric.value == math.exp(2)
    assert str(metric) == "7.39"
    assert not metric.higher_is_better


def test_figures_of_several_samples_and_of_nothing() -> None:
    metric = Metric("F1", np.zeros(1), np.zeros(1))
    assert metric.value == 0
    assert metric.of(np.array([1.0, 3.0, 0.0]), np.array([2.0, 4.0, 0.0])).tolist() == [50, 75, 0]


def test_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(ConfigError) as caught:
        metric_library("seqeval", "seqeval")
    assert str(caught.value) == "The metric needs seqeval: pip install seqeval"
