"""SQuAD's best span and its official scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdqpatch.tasks.spans import best_span
from qdqpatch.tasks.squad import scores

logits = st.floats(-8, 8, width=16)


@given(st.lists(st.tuples(logits, logits), min_size=1, max_size=8), st.integers(1, 9))
def test_best_span_is_that_of_all_spans(pairs: list[tuple[float, float]], longest: int) -> None:
    start, end = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    found, first, last = best_span(start, end, longest)
    spans = [(i, j) for i in range(len(pairs)) for j in range(i, min(i + longest, len(pairs)))]
    # Sums of two fp16 numbers below 16 are exact in fp32, so ties are ties.
    assert found == max(float(start[i] + end[j]) for i, j in spans) == float(start[first] + end[last])
    assert (first, last) in spans


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The cat!", ["cat"], (1, 1)),
        ("black cat", ["dog", "cat"], (0, 2 / 3)),
        ("black cat", ["white cat", "the black cat"], (1, 1)),
        ("cat cat", ["cat"], (0, 2 / 3)),  # a word counts as often as both have it
        ("there, then", ["then"], (0, 2 / 3)),  # an article is a word, not the beginning of one
        ("U.S.A.", ["usa"], (1, 1)),  # a point goes before articles are looked for
        ("dog", ["cat"], (0, 0)),
        ("", ["cat"], (0, 0)),
        ("", [], (1, 1)),
        ("The !", [], (1, 1)),
        ("the cat", [], (0, 0)),
    ],
)
def test_official_scores(answer: str, references: list[str], expected: tuple[float, float]) -> None:
    assert scores(answer, references) == pytest.approx(expected, abs=1e-6)  # torchmetrics has them in fp32
