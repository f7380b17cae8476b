"""Files of texts as records: lines of .txt, rows of .csv, .tsv and .parquet, objects of .jsonl, SQuAD's."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from qdqpatch.data.files import open_text
from qdqpatch.data.parquet import PARQUET, read_parquet
from qdqpatch.data.squad import read_squad
from qdqpatch.errors import DataError
from qdqpatch.spelling import counted


@dataclass(frozen=True)
class Record:
    """One record of a file or data set.

    Attributes:
        number: The line that it begins on, from 1; in data that has no lines, its index, from 0.
        fields: What it holds, by column.
        problem: Why it cannot be read, as the end of a sentence that begins with its line; else empty.
        lines: How many lines it takes up.
    """

    number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    lines: int = 1


def file_format(path: Path) -> str:
    """Return the format of a file by its name: a key of `FORMATS`, or an empty string for another one."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in (*FORMATS, SQUAD, PARQUET) if name.endswith(suffix)), "")


def unit_of(path: Path) -> str:
    """Return what the numbers of a file's records count."""
    return "row" if file_format(path) == PARQUET else "line"


def read_records(path: Path) -> Iterator[Record]:
    """Read the records of a file one after the other; blank lines are no records.

    Args:
        path: A UTF-8 file, with or without a byte order mark and with any line ends. A .csv or .tsv file
            names its columns in the first line. Quotes mean something in .csv and nothing in .tsv. A .json
            file has SQuAD's layout. Or a .parquet file.

    Raises:
        DataError: If it cannot be opened, has another format, names no columns, or is damaged.
    """
    suffix = file_format(path)
    if not suffix:
        raise DataError(
            f"The name of {path} does not tell its format: it must end in "
            f"{', '.join((*FORMATS, SQUAD))} (words with tags: {CONLL}), and may have .gz after that; or in "
            f"{PARQUET}."
        )
    if suffix == SQUAD:
        yield from (Record(line, fields) for line, fields in read_squad(path))
        return
    if suffix == PARQUET:
        yield from (Record(number, fields) for number, fields in enumerate(read_parquet(path)))
        return
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that one bad line does not end the reading.
        with open_text(path, errors="surrogateescape") as file:
            yield from FORMATS[suffix](file)
    except csv.Error as error:
        raise DataError(f"{path} does not name its columns in its first line: {error}.") from error


def _read_lines(file: TextIO) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield Record(number, {"text": line})


def _read_csv(file: TextIO) -> Iterator[Record]:
    # Strict, because a quote that is never closed would make one text of the rest of the file.
    return _read_rows(_csv_rows(file), ",")


def _read_tsv(file: TextIO) -> Iterator[Record]:
    rows = ((number, 1, line.rstrip("\r\n").split("\t")) for number, line in enumerate(file, start=1))
    return _read_rows(rows, "\t")


def _csv_rows(file: TextIO) -> Iterator[tuple[int, int, list[str] | csv.Error]]:
    """Yield the line that each row begins on, how many lines it takes up, and its cells or what is wrong."""
    reader = csv.reader(file, strict=True)
    while True:
        number = reader.line_num + 1
        row: list[str] | csv.Error
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            row = error
        yield number, reader.line_num - number + 1, row


def _read_rows(rows: Iterable[tuple[int, int, list[str] | csv.Error]], delimiter: str) -> Iterator[Record]:
    header: list[str] = []
    for number, lines, row in rows:
        if isinstance(row, csv.Error):
            if not header:
                raise row
            yield Record(number, problem=_problem(row), lines=lines)
            continue
        if len(row) < 2 and not "".join(row).strip():
            continue
        if not header:
            header = _checked_header([name.strip() for name in row], delimiter)
        elif len(row) != len(header):
            problem = f"has {counted(len(row), 'column')} where the first line names {len(header)}"
            yield Record(number, problem=problem, lines=lines)
        else:
            yield Record(number, dict(zip(header, row, strict=True)), lines=lines)


def _problem(error: csv.Error) -> str:
    if "field limit" in str(error):
        return (
            f"has a cell of more than {csv.field_size_limit()} characters, the most that Python's reader of "
            "CSV takes: write the data as .tsv or .jsonl"
        )
    return f"is not valid CSV ({error})"


def _checked_header(names: list[str], delimiter: str) -> list[str]:
    other = next((sign for sign in ",;\t|" if sign != delimiter and sign in names[0]), None)
    if len(names) == 1 and other is not None:
        raise csv.Error(
            f"{names[0]!r} is one column, which {delimiter!r} would separate and {other!r} does not"
        )
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise csv.Error(f"{twice!r} is there twice")
    return names


def _read_objects(file: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(number, problem=f"is not JSON ({error})")
            continue
        if isinstance(fields, dict):
            yield Record(number, fields)
        else:
            yield Record(number, problem="is JSON, but not an object with a field for the text")


FORMATS = {".txt": _read_lines, ".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_objects}
"""The reader of each format that is read line by line, by the suffix of its files."""

SQUAD = ".json"
"""The suffix of files in SQuAD's layout."""

CONLL = ".conll"
"""The suffix of files with a word and its tag on each line, which only the task that needs them reads."""
