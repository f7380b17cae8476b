"""Labels as data has them, read by what the model predicts: in one way for the whole column."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig

from qdqpatch.errors import DataError
from qdqpatch.spelling import counted
from qdqpatch.tasks.base import Columns, DataSource
from qdqpatch.tasks.head import problem_of
from qdqpatch.tasks.pairs import SCORES
from qdqpatch.tasks.reading import LABEL_COLUMNS, LabelledRow, check_column, label_name

Label = int | tuple[float, ...]
"""The number of a class; a 1 or 0 for every label; or the numbers to predict."""

Found = tuple[str, Any]
"""Where a label stands, and what stands there."""

SEPARATORS = ("|", ";", ",", None)
"""What stands between several labels in one text, most telling first; None for blanks."""

MARKS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""What says whether a label is there, in lower case; the last two as data frames write them."""

SHOWN = 20
"""Of more labels than this, messages name so many."""

LISTED = re.compile(r"""'([^']*)'|"([^"]*)"|([^\s,'"]+)""")
"""A part of a list that is written as a text, as data frames write it: quoted or not."""


def label_names(config: PreTrainedConfig) -> dict[int, str]:
    """Return the names of a model's labels by their numbers."""
    return {int(number): str(name) for number, name in (config.id2label or {}).items()}


def label_columns(
    row: LabelledRow, columns: Columns, source: DataSource, config: PreTrainedConfig
) -> list[str]:
    """Return the column of the labels; or several, of a model that predicts more than one thing at once.

    Several are named with commas between them, in the order of the model's labels; or they are named as its
    labels are.

    Raises:
        DataError: If there are none.
    """
    names = [name for _, name in sorted(label_names(config).items())]
    problem = problem_of(config)
    usual = (*LABEL_COLUMNS, *SCORES) if problem == "regression" else LABEL_COLUMNS
    if problem == "single_label_classification" or len(names) < 2:
        return [label_name(row, columns, source, usual)]
    if columns.label is not None and columns.label not in row.fields and "," in columns.label:
        chosen = [name.strip() for name in columns.label.split(",")]
        for name in chosen:
            check_column(name, row, source)
        if len(chosen) != len(names):
            raise DataError(
                f"{counted(len(chosen), 'column of labels is', 'columns of labels are')} named, and the "
                f"model has {counted(len(names), 'label')}: {', '.join(names)}."
            )
        return chosen
    by_lower = {name.lower(): name for name in row.fields}
    if columns.label is None and all(name.lower() in by_lower for name in names):
        return [by_lower[name.lower()] for name in names]
    return [label_name(row, columns, source, usual)]


def label_of(row: LabelledRow, columns: Sequence[str]) -> Found:
    """Return what stands in a row's column of labels, or the list of what stands in several."""
    values = [row.value(column) for column in columns]
    return row.where, values[0] if len(values) == 1 else values


def read_labels(found: Sequence[Found], config: PreTrainedConfig) -> list[Label]:
    """Return the labels of a classifier of texts.

    Classes are given by name or number. Several labels of one text are a list, or a text with `|`, `;`, `,`
    or blanks between them: of names, of numbers, or of a 1 or 0 for each of the model's labels. Numbers to
    predict are one number, or as many in a list or text.

    Args:
        found: What the data has, for each example.
        config: The model's.

    Raises:
        DataError: If something is no label of the model, or it is not clear which.
    """
    problem = problem_of(config)
    if problem == "regression":
        return [_scores(where, value, len(label_names(config))) for where, value in found]
    names = label_names(config)
    if problem == "single_label_classification":
        texts = [(where, _text(value)) for where, value in found]
        numbers = class_numbers(first_places(texts), names)
        return [numbers[text] for _, text in texts]
    return [tuple(row) for row in _sets(found, names)]


def first_places(texts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the different labels in their order, and where the first one of each stands."""
    places: dict[str, str] = {}
    for where, text in texts:
        places.setdefault(text, where)
    return places


def class_numbers(places: Mapping[str, str], names: Mapping[int, str]) -> dict[str, int]:
    """Return the number of each label: all of them are names, or all of them are numbers.

    Args:
        places: The different labels of the data, and where each stands first.
        names: The model's labels.

    Raises:
        DataError: If the model has no such label, some are names and others numbers, or names that look like
            numbers leave it open which they are.
    """
    by_name = {name.strip().lower(): number for number, name in names.items()}
    as_names = {text: by_name[text.lower()] for text in places if text.lower() in by_name}
    as_numbers = {text: number for text in places if (number := _whole(text)) is not None and number in names}
    for text, where in places.items():
        if text not in as_names and text not in as_numbers:
            shown = ", ".join(f"{number} ({names[number]})" for number in sorted(names)[:SHOWN])
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise DataError(f"{where} has the label {text!r}; the model's are {shown}{more}.")
    named, numbered = len(as_names) == len(places), len(as_numbers) == len(places)
    if named and numbered and as_names != as_numbers:
        text = next(text for text in places if as_names[text] != as_numbers[text])
        raise DataError(
            f"{places[text]} has the label {text!r}, which can be the name of label {as_names[text]} or the "
            f"number of {names[as_numbers[text]]!r}, and no other line tells. Give the model's labels "
            "names that are no numbers (id2label in its config.json), and use them."
        )
    if named:
        return as_names
    if numbered:
        return as_numbers
    text = next(text for text in places if text not in as_names)
    other = next(text for text in places if text not in as_numbers)
    raise DataError(
        f"{places[text]} has the label {text!r}, a number, and {places[other]} has {other!r}, a name. Use "
        "one of the two for all."
    )


def _text(value: Any) -> str:
    return str(int(value) if isinstance(value, bool) else value).strip()


def _whole(text: str) -> int | None:
    """Return the number that a text like 2 or 2.0 stands for."""
    match = re.fullmatch(r"(\d+)(\.0+)?", text)
    return int(match[1]) if match and match[1].isascii() else None


def _scores(where: str, value: Any, count: int) -> tuple[float, ...]:
    parts = [value] if count == 1 and not isinstance(value, (list, tuple)) else _parts(value)
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        wanted = "a number is" if count == 1 else f"{count} numbers are"
        raise DataError(f"{where} has {_text(value)!r} where {wanted} needed: the model predicts scores.")
    return numbers


def _parts(value: Any, known: Mapping[str, Any] | None = None) -> list[Any]:
    """Return the labels in a list or a text; the one label that a text is the name of is not cut."""
    if isinstance(value, (list, tuple)):
        return list(value)
    text = _text(value)
    if known and text.lower() in known:
        return [text]
    if text.startswith("[") and text.endswith("]"):  # a list, as a table of texts has it
        return ["".join(found) for found in LISTED.findall(text[1:-1])]
    separator = next((mark for mark in SEPARATORS if mark is None or mark in text), None)
    return [part.strip() for part in text.split(separator) if part.strip()]


def _sets(found: Sequence[Found], names: Mapping[int, str]) -> list[list[float]]:
    """Return a 1 or 0 for every label, of each example."""
    count = len(names)
    known = {name.strip().lower(): number for number, name in names.items()}
    rows = [(where, [_text(part) for part in _parts(value, known)]) for where, value in found]
    marked = [[MARKS.get(part.lower()) for part in parts] for _, parts in rows]
    if all(len(marks) == count and None not in marks for marks in marked):
        if count > 1 or any(marks[0] for marks in marked):
            return [[float(mark or 0) for mark in marks] for marks in marked]
        raise DataError(
            f"{rows[0][0]} has the label {rows[0][1][0]!r}, and so have all others: it can be the number of "
            f"{names[0]!r} or say that it is not there. Use the name, or data with both."
        )
    numbers = class_numbers(first_places([(where, part) for where, parts in rows for part in parts]), names)
    return [
        [float(label in {numbers[part] for part in parts}) for label in sorted(names)] for _, parts in rows
    ]
