import numpy as np
import pytest

from qdqpatch.tasks.neighbours import LEAST, Vectors, comparison, cosines, retrieval


def circle(count: int) -> np.ndarray:
    """Return unit vectors around a circle: the neighbours of each are those beside it."""
    angles = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def values(own: Vectors, reference: Vectors) -> dict[str, float]:
    return {metric.name: metric.value for metric in comparison(own, reference)}


def test_vectors_are_like_themselves_whatever_their_length() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    found = values(Vectors(3 * vectors), Vectors(vectors))
    assert found == pytest.approx(
        {
            "lowest": 1,
            "5th percentile": 1,
            "top-10 kept": 100,
            "on the float index": 100,
            "Spearman": 1,
            "cosine": 1,
        }
    )


def test_a_rotation_keeps_neighbours_but_not_the_float_index() -> None:
    vectors = circle(60)
    turned = vectors @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    found = values(Vectors(turned), Vectors(vectors))
    assert found["cosine"] == pytest.approx(0)
    assert found["top-10 kept"] > 90  # ties between both sides are broken by rounding
    assert found["on the float index"] == 0  # which a quarter of the circle away has other neighbours


def test_vectors_that_are_all_alike_have_no_order() -> None:
    one, varied = np.ones((LEAST, 1)), np.linspace([1.0, 0.0], [0.0, 1.0], LEAST)
    same = np.tile([1.0, 0.0], (LEAST, 1))
    assert values(Vectors(same), Vectors(varied))["Spearman"] == 0
    assert values(Vectors(one), Vectors(one))["Spearman"] == 1


def test_the_lowest_cosine_has_no_interval_and_few_vectors_no_neighbours() -> None:
    vectors = circle(LEAST - 1)
    lowest, fifth, cosine = comparison(Vectors(vectors), Vectors(vectors))
    assert (lowest.has_interval, fifth.has_interval, cosine.has_interval) == (False, True, True)
    assert len(comparison(Vectors(circle(LEAST)), Vectors(circle(LEAST)))) == 6


def test_percentiles_of_cosines() -> None:
    angles = np.linspace(0, 1, 101)
    own = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    reference = np.tile([1.0, 0.0], (101, 1))
    assert cosines(own, reference) == pytest.approx(np.cos(angles))
    found = values(Vectors(own[:11], own[11:]), Vectors(reference[:11], reference[11:]))
    assert found["lowest"] == pytest.approx(np.cos(1))
    assert found["5th percentile"] == pytest.approx(np.quantile(np.cos(angles), 0.05))


def test_retrieval() -> None:
    index = circle(40)
    queries = index[[0, 10, 20]] + np.array([0.0, 0.01])
    right, near, far = 0, 11, 0  # found at once, beside what is nearest, opposite to it
    recall, ten, mrr = retrieval(queries, index, [right, near, far])
    assert recall.value == pytest.approx(100 / 3)
    assert ten.value == pytest.approx(200 / 3)
    assert 1 / 3 < mrr.value < 2 / 3


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_vectors_that_are_all_alike_find_nothing(value: float) -> None:
    found = retrieval(np.full((3, 2), value), np.full((40, 2), value), [0, 1, 2])
    assert [metric.value for metric in found] == [0, 0, pytest.approx(1 / 40)]  # the mean of three
