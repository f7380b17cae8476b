import numpy as np
import pytest

from qdqpatch.errors import ConfigError
from qdqpatch.optimizing.budget import Budget
from qdqpatch.tasks.metrics import Ratio, mean
from qdqpatch.tasks.neighbours import Vectors, comparison


def test_gates_of_an_embedder() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 8))
    near = vectors + 0.001 * generator.normal(size=vectors.shape)
    far = vectors + 0.5 * generator.normal(size=vectors.shape)
    budget = Budget("states")
    good, bad = (budget.judge(comparison(Vectors(own), Vectors(vectors))) for own in (near, far))
    assert good.passes
    assert not bad.passes
    assert list(bad.figures) == ["cosine", "top-10 kept"]
    cosine, kept = (metric.value for metric in bad.figures.values())
    assert bad.shortfall == pytest.approx(100 * (0.995 - cosine) / 0.995 + 100 * (95 - kept) / 95)
    assert bad.main < good.main
    assert budget.asked(bad.figures) == "cosine of at least 0.995 and top-10 kept of at least 95"
    assert budget.asked(["cosine"]) == "cosine of at least 0.995"  # of too few texts to have neighbours


def test_a_drop_of_labels_or_of_agreement() -> None:
    budget = Budget("classes", 5.0)
    close = [
        mean("KL divergence", [0.1] * 10, in_percent=False),
        mean("unchanged predictions", [1.0] * 9 + [0]),
    ]
    assert budget.judge(close).shortfall == pytest.approx(5)
    own, reference = mean("accuracy", [1.0] * 8 + [0.0] * 2), mean("accuracy", [1.0] * 9 + [0])
    judged = budget.judge(close, [own], [reference])
    assert list(judged.figures) == ["accuracy"]
    assert judged.shortfall == pytest.approx(100 / 9 - 5)
    assert Budget("classes", 12.0).judge(close, [own], [reference]).passes
    for wrong in (-1, "1"):
        with pytest.raises(ConfigError, match=f"max_drop must be a number of at least 0, not {wrong!r}"):
            Budget("classes", wrong)


def test_masked_words_are_judged_by_their_perplexity() -> None:
    ratio = Ratio("perplexity ratio", np.log([1.05]), np.ones(1), in_percent=False, exponential=True)
    budget = Budget("classes")
    judged = budget.judge([ratio])
    assert judged.shortfall == pytest.approx(100 * 0.03 / 1.02)
    assert budget.asked(judged.figures) == "perplexity ratio of at most 1.02"
    assert budget.resolution(2, judged.figures) is None


@pytest.mark.parametrize("max_drop", [None, 5.0])
def test_what_is_not_a_number_is_worse_than_anything(max_drop: float | None) -> None:
    broken = Budget("scores", max_drop).judge([mean("correlation", [np.nan], in_percent=False)])
    assert broken.shortfall == np.inf
    assert broken.main == -np.inf
    assert not broken.passes


def test_scores_that_are_all_the_same_tell_nothing() -> None:
    with pytest.raises(ConfigError, match="gives the same score for all texts held back"):
        Budget("scores").judge([])


def test_what_examples_resolve() -> None:
    assert Budget("classes").resolution(100) is None
    message = Budget("classes").resolution(50)
    assert message is not None
    assert message.startswith("50 texts held back cannot resolve 1%: one of them is 2%.")
    assert Budget("states").resolution(30, ["cosine", "top-10 kept"]) is None
    assert Budget("states", 1.0).resolution(5, ["cosine"]) is None
    message = Budget("states").resolution(5, ["cosine"])
    assert message is not None
    assert message.startswith("5 texts held back cannot tell how many neighbours are kept, which takes 21: ")
    assert Budget("classes", 0).resolution(50) is None
