"""What is drawn, from files, data sets, lists and the hub."""

import sys
from collections.abc import Callable

import datasets
import pytest
from texts import PAIRS, PLAIN, Write, rows

from qdqpatch.data.sampling import random_order, reservoir
from qdqpatch.data.texts import Texts, read_texts
from qdqpatch.errors import CalibrationError, CalibrationWarning, ConfigError


def test_a_draw_is_uniform_repeatable_and_keeps_the_order(write: Write) -> None:
    texts = [f"text {i}" for i in range(100)]
    file = write("a.txt", "\n".join(texts))
    for data in (file, texts):
        first = read_texts(data, samples=20)
        assert (len(first.rows), len(set(first.rows)), first.total) == (20, 20, 100)
        assert first.rows == rows(data, samples=20, seed=0)
        assert first.rows != rows(data, samples=20, seed=1)
        assert first.rows == sorted(first.rows, key=lambda row: texts.index(row[0]))
        for samples in (100, 101, None):
            assert rows(data, samples=samples, seed=3) == [(text, None) for text in texts]
    with pytest.raises(ConfigError, match="samples must be at least 1, not 0"):
        rows(file, samples=0)


@pytest.mark.parametrize(
    "draw", [lambda seed: reservoir(range(10), 3, seed)[0], lambda seed: list(random_order(10, seed))[:3]]
)
def test_every_item_is_as_likely_as_any_other(draw: Callable[[int], list[int]]) -> None:
    counts = [0] * 10
    for seed in range(2000):
        for item in draw(seed):
            counts[item] += 1
    # Each count is binomial, 2000 draws of probability 0.3: mean 600, deviation 20.5. Five of these.
    assert all(abs(count - 600) < 103 for count in counts), counts


def test_a_random_order_has_every_number_once() -> None:
    for count in (0, 1, 2, 50):
        assert sorted(random_order(count, 5)) == list(range(count))


def test_a_data_set(write: Write) -> None:
    data = datasets.Dataset.from_dict(
        {"question": ["the cat", "a dog"], "n": [1, 2], "context": ["sat", "and"]}
    )
    assert rows(data) == PAIRS
    assert rows(data, "question") == PLAIN
    assert read_texts(data.select(range(0, 2)), samples=1).total == 2
    with pytest.raises(CalibrationError, match="The data has no column 'text'; it has question, n, context"):
        rows(data, "text")
    with pytest.raises(CalibrationError, match=r"has the splits train, test: choose one"):
        rows(datasets.DatasetDict({"train": data, "test": data}))
    with pytest.raises(CalibrationError, match=r"cannot be read from a IterableDataset: give"):
        rows(data.to_iterable_dataset())
    with pytest.raises(CalibrationError, match="The data has no text"):
        rows(datasets.Dataset.from_dict({"text": []}))


def test_rows_without_text_are_replaced_by_others() -> None:
    texts = [None if i % 3 == 0 else f"text {i}" for i in range(90)]
    data = datasets.Dataset.from_dict({"text": texts})
    with pytest.warns(CalibrationWarning, match=r"The data: \d+ of \d+ rows left out; row \d+ has nothing"):
        drawn = rows(data, samples=30)
    assert len(set(drawn)) == 30
    with pytest.warns(CalibrationWarning, match="The data: 30 of 90 rows left out; row 0 has nothing in"):
        assert len(rows(data, samples=None)) == 60
    mostly_empty = datasets.Dataset.from_dict({"text": ["the cat"] + [None] * 1000})
    with pytest.raises(CalibrationError, match="20 of 20 rows cannot be read"):
        rows(mostly_empty, samples=10)


def test_lists_of_texts_and_of_pairs() -> None:
    assert rows(["the cat", "a dog"]) == PLAIN
    assert rows([("the cat", "sat"), ["a dog", "and"]]) == PAIRS
    with pytest.warns(CalibrationWarning, match="row 1 is no text, but tuple"):
        assert rows(["the cat", ("a", "b"), "a dog"]) == PLAIN
    with pytest.warns(CalibrationWarning, match="row 1 is no pair of texts, as row 0 is, but str"):
        assert rows([("the cat", "sat"), "ab", ("a dog", "and")]) == PAIRS
    for nothing in (b"bytes", {"text": ["a"]}, 3, None, iter(["a"])):
        with pytest.raises(CalibrationError, match=r"Texts cannot be read from a "):
            rows(nothing)


def test_a_hub_name_needs_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CalibrationError, match=r"no file nyu-mll/glue, .*pip install datasets"):
        rows("nyu-mll/glue")


def test_a_hub_data_set_is_loaded_by_name_subset_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load(*arguments: object, **options: object) -> datasets.Dataset:
        calls.append((arguments, options))
        return datasets.Dataset.from_dict({"sentence": ["the cat", "a dog"], "label": [0, 1]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_texts("stanfordnlp/sst2")
    assert found == Texts(PLAIN, "stanfordnlp/sst2", ("sentence", None), 2)
    rows("imdb", split="test[:10%]", subset="plain")
    assert calls == [
        (("stanfordnlp/sst2", None), {"split": "train"}),
        (("imdb", "plain"), {"split": "test[:10%]"}),
    ]


def test_hub_data_sets_that_are_not_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("json.json", '{"text": "must not be read"}')
    for name in ("json", "text", "csv"):
        with pytest.raises(CalibrationError, match=f"There is no file {name}, and {name} is a format"):
            rows(name)

    def fail(*arguments: object, **options: object) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among\tsst2, cola")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        CalibrationError,
        match=r"^There is no file glue, .* set: Config name is missing. Please pick one among sst2, cola$",
    ):
        rows("glue")


def test_the_hub_cannot_be_reached() -> None:
    with pytest.raises(CalibrationError, match=r"There is no file no/such, and the hub gives no such"):
        rows("no/such")


def test_split_and_subset_are_for_the_hub(write: Write) -> None:
    file = write("a.txt", "the cat")
    for options in ({"split": "train"}, {"subset": "sst2"}):
        for data in (file, ["the cat"]):
            with pytest.raises(ConfigError, match="split and subset are for data sets on the hub"):
                rows(data, **options)
