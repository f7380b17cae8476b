"""Two texts that an embedder reads one by one: a query and the document it is for, or two with a score."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qdqpatch.errors import DataError
from qdqpatch.tasks.base import Columns
from qdqpatch.tasks.reading import LabelledRow

QUERIES = (
    ("query", "document"),
    ("query", "passage"),
    ("query", "positive"),
    ("anchor", "positive"),
    ("question", "context"),
    ("question", "answer"),
)
"""The names of columns that hold queries and what each is for, most usual first."""

SCORES = ("score", "similarity", "similarity_score")
"""The usual names of a column that says how alike two texts are, most usual first."""

QUERY_PROMPTS, DOCUMENT_PROMPTS = ("query", "question"), ("document", "passage", "corpus")
"""The names of prompts for either."""


@dataclass(frozen=True)
class Pair:
    """Two texts.

    Attributes:
        first: A text; the query, if there is no score.
        second: Another one; the document that the query is for.
        score: How alike they are, in any unit; None if one is a query for the other.
    """

    first: str
    second: str
    score: float | None = None


def query_columns(row: LabelledRow, columns: Columns) -> tuple[str, str] | None:
    """Return the columns of queries and documents; None if there are none by a usual name."""
    if columns.text is not None and columns.text_pair is not None:
        named = columns.text, columns.text_pair
        return named if (named[0].lower(), named[1].lower()) in QUERIES else None
    if columns.text is not None:
        return None
    by_lower = {name.lower(): name for name in row.fields}
    usual = next((pair for pair in QUERIES if by_lower.keys() >= {*pair}), None)
    return None if usual is None else (by_lower[usual[0]], by_lower[usual[1]])


def score_column(row: LabelledRow, columns: Columns) -> str | None:
    """Return the column of scores: the one that was named, or one of a usual name; None if there is none."""
    if columns.label is not None:
        return columns.label
    by_lower = {name.lower(): name for name in row.fields}
    return next((by_lower[name] for name in SCORES if name in by_lower), None)


def score_of(row: LabelledRow, column: str) -> float:
    """Return the number in a column.

    Raises:
        DataError: If there is none.
    """
    value = row.value(column)
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{row.where} has {value!r} in {column!r}, which is no number.")
    return score
