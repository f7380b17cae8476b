"""The difference of two models' metrics, and its interval."""

import math
import tracemalloc

import numpy as np
import pytest

from qdqpatch.evaluation.bootstrap import RESAMPLES, difference
from qdqpatch.tasks.metrics import Floats, Ratio, mean


def ratio(seed: int, count: int = 200) -> Ratio:
    """Return a metric whose denominators differ, as those of F1 over entities do."""
    generator = np.random.default_rng(seed)
    denominators = generator.integers(1, 6, count).astype(np.float64)
    return Ratio("F1", denominators * generator.random(count), denominators)


def perplexity(*losses: float) -> Ratio:
    return Ratio("perplexity", np.array(losses), np.ones(len(losses)), in_percent=False, exponential=True)


def test_equal_models_do_not_differ() -> None:
    found = difference(ratio(1), ratio(1))
    assert (found.value, found.interval, found.drop) == (0.0, (0.0, 0.0), 0.0)


def test_a_shift_of_every_example_is_certain() -> None:
    # Each resample has another mean, and all of them have the same difference: the examples are paired.
    values = np.arange(100) / 128  # sums of these are exact
    found = difference(mean("accuracy", [*values]), mean("accuracy", [*(values + 0.125)]))
    assert found.value == 12.5
    assert found.interval == pytest.approx((12.5, 12.5), abs=1e-10)
    assert found.drop == pytest.approx(-100 * 0.125 / values.mean())


def test_the_interval_is_that_of_resampling() -> None:
    first, other = both = ratio(1), ratio(2)
    generator = np.random.default_rng(5)
    differences = []
    for _ in range(20_000):
        drawn = generator.integers(0, 200, 200)
        one, two = (100 * score.numerators[drawn].sum() / score.denominators[drawn].sum() for score in both)
        differences.append(two - one)
    found = difference(first, other)
    assert found.value == pytest.approx(other.value - first.value)
    # Three standard errors of these quantiles of so many draws of a normal distribution, whose density there
    # is 0.058. The ends of a 90% interval would be further off.
    deviation = np.std(differences)
    slack = 3 * math.sqrt(0.025 * 0.975 / RESAMPLES) * deviation / 0.058
    assert slack < (1.960 - 1.645) * deviation
    assert found.interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=slack)


def test_the_seed_chooses_the_resamples() -> None:
    first, other = ratio(1), ratio(2)
    assert difference(first, other, seed=3) == difference(first, other, seed=3)
    assert difference(first, other, seed=3).interval != difference(first, other, seed=4).interval
    assert difference(first, other).interval == difference(first, other, seed=0).interval


def test_a_rise_of_perplexity_is_a_drop() -> None:
    worse = difference(perplexity(1.0, 2.0, 3.0), perplexity(1.5, 2.5, 3.5))
    assert worse.value == pytest.approx(math.exp(2.5) - math.exp(2))
    assert worse.drop == pytest.approx(100 * (math.exp(0.5) - 1))
    assert worse.interval is not None
    assert math.exp(1.5) - math.exp(1.0) <= worse.interval[0] < worse.value < worse.interval[1]
    better = difference(perplexity(1.5, 2.5, 3.5), perplexity(1.0, 2.0, 3.0))
    assert better.drop == pytest.approx(100 * (math.exp(-0.5) - 1))


def test_the_drop_is_relative_to_the_first_model() -> None:
    half, fifth = mean("accuracy", [1.0, 1.0, 0.0, 0.0]), mean("accuracy", [1.0, 0.0, 0.0, 0.0])
    assert difference(half, fifth).drop == 50
    assert difference(fifth, half).drop == -100
    assert difference(mean("accuracy", [0.0, 0.0]), mean("accuracy", [1.0, 0.0])).drop is None


def test_one_example_has_no_interval() -> None:
    found = difference(mean("accuracy", [1.0]), mean("accuracy", [0.0]))
    assert (found.value, found.interval) == (-100.0, None)


def test_samples_without_a_denominator_count_as_zero() -> None:
    # Half of the resamples of two rows hold only one of them.
    sparse = Ratio("F1", np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    none = Ratio("F1", np.array([0.0, 0.0]), np.array([1.0, 0.0]))
    assert difference(sparse, none).interval == (-100.0, 0.0)


def test_memory_does_not_grow_with_the_examples() -> None:
    # 1000 resamples of so many examples at once would be 160 MB in indices alone.
    values: Floats = np.ones(20_000)
    metric = Ratio("accuracy", values, values)
    tracemalloc.start()
    difference(metric, metric)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6
