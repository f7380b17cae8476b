"""Labels of the whole column: names or numbers, several at once, scores."""

from typing import Any

import models
import pytest
import tiny_tasks
from texts import Write

from qdqpatch.errors import DataError, NoLabelsError
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.labels import read_labels
from qdqpatch.tasks.text_classification import TextClassification

SEQUENCES = "BertForSequenceClassification"
STARS = {0: "1", 1: "2", 2: "3"}
FEELINGS = {0: "joy", 1: "anger", 2: "no feeling"}
MULTI = {"id2label": FEELINGS, "problem_type": "multi_label_classification"}


def config(**changes: Any) -> Any:
    return models.config(SEQUENCES, **changes)


def read(*values: Any, **changes: Any) -> list[Any]:
    found = [(f"line {number},", value) for number, value in enumerate(values, start=1)]
    return read_labels(found, config(**changes))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("0", "1", "2"), [0, 1, 2]),  # numbers, though two of them are names too
        ((2, 1, 0), [2, 1, 0]),
        (("1", "2", "3"), [0, 1, 2]),  # names, though two of them are numbers too
        (("3.0", "3"), None),
        (("0.0", "2.0"), [0, 2]),  # as data frames write numbers where one was missing
    ],
)
def test_names_that_look_like_numbers(values: tuple, expected: list[int] | None) -> None:
    if expected is None:
        with pytest.raises(DataError, match=r"line 1, has the label '3\.0'; the model's are 0 \(1\)"):
            read(*values, id2label=STARS)
    else:
        assert read(*values, id2label=STARS) == expected


def test_of_many_labels_some_are_named() -> None:
    with pytest.raises(
        DataError, match=r"the model's are 0 \(intent 0\), .*, 19 \(intent 19\) and 130 more\.$"
    ):
        read("refund", id2label={number: f"intent {number}" for number in range(150)})


def test_what_may_be_either_is_refused() -> None:
    with pytest.raises(
        DataError, match="line 1, has the label '1', which can be the name of label 0 or the "
    ):
        read("1", "2", id2label=STARS)
    assert read("1", "0", id2label={0: "0", 1: "1"}) == [1, 0]  # both ways the same


def test_names_and_numbers_are_not_mixed() -> None:
    with pytest.raises(DataError, match="line 2, has the label '0', a number, and line 1, has 'JOY', a name"):
        read("JOY", "0", id2label=FEELINGS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (([0, 1, 0], [1, 1, 0]), [(0, 1, 0), (1, 1, 0)]),
        (([0.0, 1.0, 0.0],), [(0, 1, 0)]),
        ((["joy", "no feeling"], []), [(1, 0, 1), (0, 0, 0)]),
        (([2], [0, 1]), [(0, 0, 1), (1, 1, 0)]),
        (("joy|anger", "no feeling", ""), [(1, 1, 0), (0, 0, 1), (0, 0, 0)]),
        (("joy, no feeling", "Anger"), [(1, 0, 1), (0, 1, 0)]),
        (("joy;anger",), [(1, 1, 0)]),
        (("0 1 1", "1 0 0"), [(0, 1, 1), (1, 0, 0)]),
        ((0, 2), [(1, 0, 0), (0, 0, 1)]),
        (([True, "False", "true"], ["False", "False", "True"]), [(1, 0, 1), (0, 0, 1)]),
        (("[1, 0, 1]", "[0 1 0]"), [(1, 0, 1), (0, 1, 0)]),  # lists and arrays, as data frames write them
        (("['joy', \"no feeling\"]", "[]", "[anger]"), [(1, 0, 1), (0, 0, 0), (0, 1, 0)]),
    ],
)
def test_several_labels(values: tuple, expected: list) -> None:
    assert read(*values, **MULTI) == expected


def test_the_only_label_of_several_is_there_or_not() -> None:
    one: dict[str, Any] = {
        "num_labels": 1,
        "id2label": {0: "toxic"},
        "problem_type": "multi_label_classification",
    }
    assert read("0", 1, "1.0", [0], **one) == [(0,), (1,), (1,), (0,)]
    assert read("toxic", "", **one) == [(1,), (0,)]
    assert read([0], [], **one) == [(1,), (0,)]
    with pytest.raises(DataError, match="line 1, has the label '0', and so have all others: it can be the"):
        read("0", "0", **one)


def test_several_labels_that_are_none() -> None:
    with pytest.raises(DataError, match="line 1, has the label 'fear'; the model's are 0"):
        read("joy|fear", **MULTI)


def test_scores() -> None:
    assert read("0.8", 3, "-1e-3", num_labels=1) == [(0.8,), (3.0,), (-0.001,)]
    assert read([1, "2.5"], "3 4", num_labels=2, problem_type="regression") == [(1.0, 2.5), (3.0, 4.0)]
    for value in ("good", "nan", "inf", "", [1.0, 2.0]):
        with pytest.raises(DataError, match=r"line 1, has .* where a number is needed"):
            read(value, num_labels=1)
    with pytest.raises(DataError, match="line 1, has '3' where 2 numbers are needed"):
        read(3, num_labels=2, problem_type="regression")


def task(**changes: Any) -> TextClassification:
    return tiny_tasks.make(TextClassification, SEQUENCES, **changes)[0]


@pytest.mark.parametrize("named", [None, "anger,Joy,no feeling"])
def test_a_column_for_each_label(write: Write, named: str | None) -> None:
    data = write("wide.tsv", "text\tanger\tJoy\tno feeling\nthe cat\t1\t0\t1\n")
    columns = Columns(label=named)
    expected = (0.0, 1.0, 1.0) if named is None else (1.0, 0.0, 1.0)
    (example,) = task(**MULTI).read(DataSource(str(data), columns))
    assert example.label == expected
    with pytest.raises(
        DataError, match="2 columns of labels are named, and the model has 3 labels: joy, anger"
    ):
        task(**MULTI).read(DataSource(str(data), Columns(label="Joy,anger")))


def test_scores_are_in_a_column_of_scores(write: Write) -> None:
    data = write("pairs.tsv", "sentence1\tsentence2\tscore\nthe cat\ta dog\t0.5\n")
    (example,) = task(num_labels=1).read(DataSource(str(data)))
    assert example.label == (0.5,)
    with pytest.raises(NoLabelsError, match=r"usual name \(label, labels, gold_label, target, class\);"):
        task(num_labels=2).read(DataSource(str(data)))


def test_a_first_row_without_a_label_is_not_data_without_labels(write: Write) -> None:
    data = write("data.jsonl", '{"text": "the cat"}\n{"text": "a dog", "label": 1}\n')
    with pytest.raises(DataError, match=r"data\.jsonl, line 1, has no field 'label'") as error:
        task().read_any(DataSource(str(data)))
    assert not isinstance(error.value, NoLabelsError)


def test_no_labels_at_all_are_told_from_bad_ones(write: Write) -> None:
    plain, bad = write("plain.txt", "the cat\na dog\n"), write("bad.tsv", "text\tlabel\nthe cat\tfine\n")
    classifier = task()
    examples, reason = classifier.read_any(DataSource(str(plain)))
    assert isinstance(reason, NoLabelsError)
    assert [example.label for example in examples] == [None, None]
    with pytest.raises(DataError, match="has the label 'fine'"):
        classifier.read_any(DataSource(str(bad)))


def test_labels_become_floats_in_batches(write: Write) -> None:
    data = write(
        "several.jsonl", '{"text": "the cat", "label": [0, 1, 1]}\n{"text": "a", "label": [1, 0, 0]}\n'
    )
    several = task(**MULTI)
    batch = several.collate(several.features(several.read(DataSource(str(data))), training=True))
    assert batch["labels"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch["labels"].is_floating_point()
