"""Which columns of a record are the text and its pair, and whether they can be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qdqpatch.data.records import Record
from qdqpatch.errors import DataError
from qdqpatch.spelling import spelled

Columns = tuple[str, str | None]
Text = tuple[str, str | None]

PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("question", "context"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
    ("text1", "text2"),
)
"""The usual names of two columns that a model reads together, most usual first."""

SINGLES = ("text", "sentence", "content", "document", "review", "question", "query")
"""The usual names of a column of texts, most usual first."""


def choose_columns(fields: Mapping[str, Any], source: str) -> Columns:
    """Choose the columns by their usual names, whatever their case, or take the only one that holds text.

    Args:
        fields: A record.
        source: The name of the data, for the error.

    Raises:
        DataError: If it is not clear which columns they are.
    """
    names = {name.lower(): name for name in fields}
    for first, second in PAIRS:
        if first in names and second in names:
            return names[first], names[second]
    for single in SINGLES:
        if single in names:
            return names[single], None
    texts = [name for name, value in fields.items() if len(fields) == 1 or _is_prose(value)]
    if len(texts) == 1:
        return texts[0], None
    raise DataError(
        f"{source}: which column holds the texts is not clear, for it has {listed(fields)}. Name it with "
        f"{spelled('text_column')}."
    )


def check_columns(columns: Columns, names: Iterable[str], source: str) -> None:
    """Check that columns are there.

    Args:
        columns: The columns to use.
        names: The columns that there are.
        source: The name of the data, for the error.

    Raises:
        DataError: If one is not.
    """
    names = list(names)
    for column in columns:
        if column is not None and column not in names:
            raise DataError(f"{source} has no column {column!r}; it has {listed(names)}.")


def problem_of(record: Record, columns: Columns) -> str:
    """Return why a record gives no text, as the end of a sentence; an empty string if it gives one."""
    if record.problem:
        return record.problem
    for column in columns:
        if column is None:
            continue
        if column not in record.fields:
            return f"has no field {column!r}"
        value = record.fields[column]
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"has nothing in {column!r}"
        if not isinstance(value, str):
            return f"has {type(value).__name__} in {column!r}, which is no text"
        if "\0" in value:
            return f"has a NUL character in {column!r}"
        if not _is_utf8(value):
            return "is not UTF-8 text"
    return ""


def text_of(record: Record, columns: Columns) -> Text:
    """Return the text, and its pair if there is a column for one, of a record without a problem."""
    first, second = columns
    pair = None if second is None else record.fields[second].strip()
    return record.fields[first].strip(), pair


def listed(names: Iterable[str]) -> str:
    """Write names as a list that an error can hold."""
    return ", ".join(names) or "none"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_prose(value: Any) -> bool:
    """Tell whether a value is text rather than a number or a label's name."""
    return isinstance(value, str) and " " in value.strip()
