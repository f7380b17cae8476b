"""What is wrong with a file as a whole is told alike by every task."""

import gzip
import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_tasks
from texts import Write

from qdqpatch.errors import ConfigError, DataError
from qdqpatch.tasks import TASKS
from qdqpatch.tasks.base import Columns, DataSource, Task, draw

HEADS = {
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
    "multiple-choice": "BertForMultipleChoice",
    "fill-mask": "BertForMaskedLM",
    "feature-extraction": "BertModel",
}
SUFFIXES = {"question-answering": (".jsonl", ".json"), "token-classification": (".jsonl", ".conll")}
IMAGES = "image-classification"
"""Reads folders as well, and so has tests of its own."""
CASES = [(name, suffix) for name in HEADS for suffix in SUFFIXES.get(name, (".jsonl",))]


@pytest.fixture(params=CASES, ids="".join)
def case(request: pytest.FixtureRequest) -> tuple[Task[Any], str]:
    name, suffix = request.param
    return tiny_tasks.make(TASKS[name], HEADS[name])[0], suffix


def test_every_task_is_tried() -> None:
    assert HEADS.keys() | {IMAGES} == TASKS.keys()


def test_no_file(here: Path, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    assert tiny_tasks.error_of(task, f"none{suffix}") == f"There is no file none{suffix}."


def test_a_pipe_is_not_waited_for(here: Path, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    os.mkfifo(f"pipe{suffix}")
    assert tiny_tasks.error_of(task, f"pipe{suffix}").startswith(f"pipe{suffix} is a pipe or a device, which")


def test_folder(here: Path, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    Path(f"folder{suffix}").mkdir()
    assert tiny_tasks.error_of(task, f"folder{suffix}") == f"folder{suffix} is a folder; name a file."


def test_no_gzip_file(here: Path, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    Path(f"bad{suffix}.gz").write_bytes(b"the cat")
    assert tiny_tasks.error_of(task, f"bad{suffix}.gz") == (
        f"bad{suffix}.gz is damaged, or is not gzipped at all (Not a gzipped file (b'th')). Copy or download "
        "it again."
    )


def test_gzip_file_that_ends_early(here: Path, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    Path(f"cut{suffix}.gz").write_bytes(gzip.compress(b" \n" * 100)[:-9])
    assert tiny_tasks.error_of(task, f"cut{suffix}.gz") == (
        f"cut{suffix}.gz is damaged, or is not gzipped at all (Compressed file ended before the "
        "end-of-stream marker was reached). Copy or download it again."
    )


def test_file_without_a_record(write: Write, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    empty = '{"data": []}' if suffix == ".json" else "\n \n"
    says = "is empty: it has no question." if suffix == ".json" else "is empty."
    assert tiny_tasks.error_of(task, write(f"empty{suffix}", empty)) == f"empty{suffix} {says}"


@pytest.mark.parametrize("name", HEADS)
def test_damaged_json(write: Write, name: str) -> None:
    task, _ = tiny_tasks.make(TASKS[name], HEADS[name])
    assert tiny_tasks.error_of(task, write("bad.jsonl", '\n{"text": \n')) == (
        "bad.jsonl, line 2, is not JSON (Expecting value: line 2 column 1 (char 10))."
    )
    assert tiny_tasks.error_of(task, write("list.jsonl", "[1]\n")) == (
        "list.jsonl, line 1, is JSON, but not an object with a field for the text."
    )


@pytest.mark.parametrize("name", ["text-classification", "multiple-choice", "fill-mask"])
def test_row_with_other_columns(write: Write, name: str) -> None:
    task, _ = tiny_tasks.make(TASKS[name], HEADS[name])
    rows = "text,prompt,ending0,ending1,label\na cat,a cat,sat,and,1\na,cat\n"
    assert tiny_tasks.error_of(task, write("rows.csv", rows)) == (
        "rows.csv, line 3, has 2 columns where the first line names 5."
    )


def test_format_without_a_reader(write: Write, case: tuple[Task[Any], str]) -> None:
    assert tiny_tasks.error_of(case[0], write("data.xml", "<cat/>")) == (
        "The name of data.xml does not tell its format: it must end in .txt, .csv, .tsv, .jsonl, .json "
        "(words with tags: .conll), and may have .gz after that; or in .parquet."
    )


def test_rows_of_the_hub_are_named_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load(name: str, subset: str | None, split: str) -> datasets.Dataset:
        asked.append((name, subset, split))
        return datasets.Dataset.from_dict({"tokens": [["a", "cat"], ["sat"]], "ner_tags": [[0, 1], [3]]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    task, _ = tiny_tasks.make(TASKS["token-classification"], HEADS["token-classification"])
    with pytest.raises(DataError) as caught:
        task.read(DataSource("some/tags", split="test", subset="en"))
    assert asked == [("some/tags", "en", "test")]
    assert str(caught.value) == (
        "some/tags, row 1, word 1, has the label '3'; the model's are 0 (LABEL_0), 1 (LABEL_1), 2 (LABEL_2)."
    )
    unlabelled = task.read(DataSource("some/tags"), labelled=False)
    assert [example.words for example in unlabelled] == [("a", "cat"), ("sat",)]


def test_split_and_subset_are_for_the_hub(write: Write, case: tuple[Task[Any], str]) -> None:
    task, suffix = case
    path = str(write(f"data{suffix}", "{}"))
    for source in (DataSource(path, split="test"), DataSource(path, subset="sst2")):
        with pytest.raises(
            ConfigError, match=f"^split and subset are for data sets on the hub; {path} is none.$"
        ):
            task.read(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("token-classification", "{}", "Token classification has no second text, so"),
        ("multiple-choice", "{}", "Multiple choice has no second text, so"),
        ("fill-mask", '{"text": "a"}', "text_pair needs text, which names the column of the first texts."),
    ],
)
def test_second_texts_where_there_are_none(write: Write, name: str, content: str, message: str) -> None:
    task, _ = tiny_tasks.make(TASKS[name], HEADS[name])
    source = DataSource(str(write("data.jsonl", content)), Columns(text_pair="other"))
    with pytest.raises(ConfigError) as caught:
        task.read(source)
    assert str(caught.value).startswith(message)


def test_draws_are_in_order_without_repeats_and_depend_on_the_seed_only() -> None:
    numbers = list(range(100))
    drawn = draw(numbers, 10, seed=3)
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn) == draw(numbers, 10, seed=3) != draw(numbers, 10, seed=4)
    assert draw(numbers, None) == draw(numbers, 100) == draw(numbers, 101) == numbers
