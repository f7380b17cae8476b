"""Data that is stored in Arrow's formats: .parquet files, and folders that `save_to_disk` wrote."""

import re
import sys
from pathlib import Path

import datasets
import pytest
import sensitivities
import tiny_tasks
from commands import invoke
from texts import PAIRS, PLAIN, rows

from qdqpatch.data import parquet
from qdqpatch.data.texts import read_texts
from qdqpatch.errors import CalibrationWarning, ConfigError, DataError
from qdqpatch.tasks import TASKS
from qdqpatch.tasks.base import DataSource

COLUMNS = {"question": ["the cat", "a dog"], "n": [1, 2], "context": ["sat", "and"]}


@pytest.fixture
def table() -> datasets.Dataset:
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(COLUMNS)


def test_rows_of_a_parquet_file(here: Path, table: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS", 1)
    table.to_parquet("a.parquet")
    assert rows("a.parquet") == PAIRS
    assert rows(Path("a.parquet"), "question") == PLAIN
    assert read_texts("a.parquet", samples=1).total == 2
    datasets.Dataset.from_dict({"text": ["the cat", None, "a dog"]}).to_parquet("b.parquet")
    with pytest.warns(CalibrationWarning, match="1 of 3 rows left out; row 1 has nothing in 'text'"):
        assert rows("b.parquet") == PLAIN
    Path("c.parquet").write_bytes(Path("a.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"^c\.parquet is damaged, or is no \.parquet file: "):
        rows("c.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"^a\.parquet, a \.parquet file, needs pyarrow: pip install pyarrow$"
    ):
        rows("a.parquet")


def test_folders_of_a_data_set(here: Path, table: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    table.save_to_disk("one")
    datasets.DatasetDict({"train": table, "dev": table.select([1])}).save_to_disk("two")
    assert rows("one") == rows(Path("two")) == PAIRS
    assert rows("two", split="dev") == PAIRS[1:]
    for arguments, message in (
        ({"data": "two", "split": "test"}, "two has no split 'test'; name one with split: train, dev."),
        ({"data": "one", "split": "train"}, "one has no splits: leave out split."),
        ({"data": "one", "subset": "en"}, "one has no subsets: subset is for data sets on the hub."),
    ):
        with pytest.raises((DataError, ConfigError)) as caught:
            read_texts(**arguments)
        assert str(caught.value) == message
    next(Path("one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"^Cannot read one: "):
        rows("one")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"^two, which save_to_disk wrote, needs datasets: pip install datasets$"
    ):
        rows("two")


def test_rows_with_labels_are_named_by_their_number(here: Path) -> None:
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"tokens": [["a", "cat"], ["sat"]], "tags": [[0, 1], [9]]})
    data.to_parquet("tags.parquet")
    datasets.DatasetDict({"train": data}).save_to_disk("tags")
    task, _ = tiny_tasks.make(TASKS["token-classification"], "BertForTokenClassification")
    for name in ("tags.parquet", "tags"):
        with pytest.raises(DataError, match=f"^{re.escape(name)}, row 1, word 1, has the label '9'"):
            task.read(DataSource(name))
        assert [example.words for example in task.read(DataSource(name), labelled=False)] == [
            ("a", "cat"),
            ("sat",),
        ]


def test_commands_take_them(here: Path) -> None:
    sensitivities.write_classifier(Path("ckpt"))
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_dict({"text": ["the cat", "a dog", "the mat"], "label": [0, 1, 0]})
    datasets.DatasetDict({"train": data, "validation": data.select([0])}).save_to_disk("data")
    result = invoke("convert", "ckpt", "out", "--calib", "data", "--split", "train", "--max-length", 8)
    assert result.exit_code == 0, result.output
    assert "Calibrating with 3 of 3 texts in data (text)." in result.stderr
    result = invoke("eval", "ckpt", "--data", "data")
    assert result.exit_code == 0, result.output
    assert "1 example" in result.stdout
    result = invoke("convert", "ckpt", "out", "--calib", "data", "--subset", "en")
    assert (result.exit_code, "--subset is for data sets on the hub" in result.output) == (2, True)
