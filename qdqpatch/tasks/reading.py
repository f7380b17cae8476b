"""Labelled data, record by record: anything wrong in it is an error that names the file and the line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdqpatch.data import columns as text_columns
from qdqpatch.data.files import check_file
from qdqpatch.data.named import is_dataset, load_dataset
from qdqpatch.data.records import Record, read_records, unit_of
from qdqpatch.errors import ConfigError, DataError, NoLabelsError
from qdqpatch.spelling import spelled
from qdqpatch.tasks.base import Columns, DataSource

LABEL_COLUMNS = ("label", "labels", "gold_label", "target", "class")
"""The usual names of a column of labels, most usual first."""


@dataclass(frozen=True)
class LabelledRow:
    """A record and where it stands.

    Attributes:
        where: The file and the line, or the data set and the row; what errors begin with.
        fields: What it holds, by column.
    """

    where: str
    fields: Mapping[str, Any]

    def text(self, column: str, strip: bool = True) -> str:
        """Return a column's text, without blanks around it unless told otherwise.

        Raises:
            DataError: If it is empty or no text.
        """
        problem = text_columns.problem_of(Record(0, self.fields), (column, None))
        if problem:
            raise DataError(f"{self.where} {problem}.")
        text = str(self.fields[column])
        return text.strip() if strip else text

    def value(self, column: str) -> Any:
        """Return a column's value.

        Raises:
            DataError: If there is none.
        """
        if self.fields.get(column) is None:
            raise DataError(f"{self.where} has no field {column!r}.")
        return self.fields[column]


def read_rows(source: DataSource) -> Iterator[LabelledRow]:
    """Yield the records of a file or a hub data set, the first one with the columns of all.

    Objects of .jsonl may differ in their fields, and columns are chosen by the first row.

    Raises:
        DataError: If it is not there, has no record, or one cannot be read.
        ConfigError: If a split or subset is given for a file.
    """
    rows = _rows(source)
    if is_format(source, ".jsonl"):
        every = list(rows)
        names: dict[str, None] = {name: None for row in every for name in row.fields}
        rows = (
            LabelledRow(row.where, {**names, **row.fields} if row is every[0] else row.fields)
            for row in every
        )
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source.name} is empty.")
    yield first
    yield from rows


def _rows(source: DataSource) -> Iterator[LabelledRow]:
    for where, record in _records(source):
        if record.problem:
            raise DataError(f"{where} {record.problem}.")
        yield LabelledRow(where, record.fields)


def _records(source: DataSource) -> Iterator[tuple[str, Record]]:
    if is_dataset(source.name):
        data = load_dataset(source.name, source.split, source.subset)
        for number, fields in enumerate(data):
            yield f"{source.name}, row {number},", Record(number, fields)
        return
    path = checked_file(source)
    for record in read_records(path):
        yield f"{source.name}, {unit_of(path)} {record.number},", record


def checked_file(source: DataSource) -> Path:
    """Return the path of a source that is a file.

    Raises:
        DataError: If there is no such file.
        ConfigError: If a split or subset is given.
    """
    if source.split is not None or source.subset is not None:
        raise ConfigError(
            f"{spelled('split')} and {spelled('subset')} are for data sets on the hub; {source.name} is none."
        )
    path = Path(source.name)
    check_file(path)
    return path


def is_format(source: DataSource, *suffixes: str) -> bool:
    """Tell whether a source has a file's name that, without .gz, ends so."""
    return source.name.lower().removesuffix(".gz").endswith(suffixes)


def text_names(row: LabelledRow, columns: Columns, source: DataSource) -> tuple[str, str | None]:
    """Return the columns of the text and its pair, the usual ones unless they are named.

    Raises:
        DataError: If they are not there, or it is not clear which they are.
        ConfigError: If only the second one is named.
    """
    if columns.text is None:
        if columns.text_pair is not None:
            raise ConfigError(
                f"{spelled('text_pair')} needs {spelled('text')}, which names the column of the first texts."
            )
        without_label = {name: value for name, value in row.fields.items() if name != columns.label}
        return text_columns.choose_columns(without_label, source.name)
    for name in (columns.text, columns.text_pair):
        check_column(name, row, source)
    return columns.text, columns.text_pair


def label_name(
    row: LabelledRow, columns: Columns, source: DataSource, usual: Sequence[str] = LABEL_COLUMNS
) -> str:
    """Return the column of the labels, the usual one unless it is named.

    Raises:
        NoLabelsError: If there is none by a usual name, and none is named.
        DataError: If there is none of the name that it should have.
    """
    return column_name(row, source, columns.label, usual, "labels", spelled("label"), NoLabelsError)


def column_name(
    row: LabelledRow,
    source: DataSource,
    named: str | None,
    usual: Sequence[str],
    what: str,
    setting: str,
    error: type[DataError] = DataError,
) -> str:
    """Return a column, the usual one unless it is named.

    Args:
        row: A record, which has the columns.
        source: The data, for the error.
        named: The column that was asked for.
        usual: Its usual names, most usual first, in lower case; case does not matter.
        what: What it holds, for the error.
        setting: How to name it, for the error.
        error: What is raised if there is none by a usual name.

    Raises:
        DataError: If there is none.
    """
    if named is not None:
        check_column(named, row, source)
        return named
    by_lower = {name.lower(): name for name in row.fields}
    found = next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None:
        raise error(
            f"{source.name} has no column of {what} by a usual name ({', '.join(usual)}); it has "
            f"{text_columns.listed(row.fields)}. Name it with {setting}."
        )
    return found


def refuse_pair(columns: Columns, task: str) -> None:
    """Raise a `ConfigError` if a column of second texts is named, for a task that has none."""
    if columns.text_pair is not None:
        raise ConfigError(f"{task} has no second text, so {spelled('text_pair')} means nothing.")


def check_column(name: str | None, row: LabelledRow, source: DataSource) -> None:
    """Raise a `DataError` unless the column is there; None is nothing to check."""
    if name is not None and name not in row.fields:
        raise DataError(f"{source.name} has no column {name!r}; it has {text_columns.listed(row.fields)}.")
