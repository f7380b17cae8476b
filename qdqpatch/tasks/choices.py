"""Where a row has the endings to choose from: in a list, or in numbered columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qdqpatch.data.columns import listed
from qdqpatch.errors import DataError
from qdqpatch.tasks.reading import LabelledRow

LISTS = ("endings", "choices", "options")
"""The usual names of a column of lists, most usual first."""
NUMBERED = ("ending", "choice", "option", "answer")
"""The usual words before the number of a column, most usual first."""

Endings = tuple[str, ...]
"""The columns: numbered ones, or a single one with a list."""


def ending_names(row: LabelledRow, source: str) -> Endings:
    """Return the columns of the endings.

    They are the columns with a usual word and consecutive numbers, from 0 or 1 on; else a list by a usual
    name; else the columns with any other word and consecutive numbers.

    Raises:
        DataError: If there are none, or it is not clear which they are.
    """
    groups = _numbered(row.fields)
    by_lower = {name.lower(): name for name in row.fields}
    found = [groups[word] for word in NUMBERED if word in groups]
    found += [(by_lower[name],) for name in LISTS if name in by_lower]
    if not found and len(groups) == 1:
        found = list(groups.values())
    if found:
        return found[0]
    raise DataError(
        f"{source} has no endings to choose from by usual names: columns such as ending0, ending1, ... with "
        f"consecutive numbers, or a list in {', '.join(LISTS)}. It has {listed(row.fields)}."
    )


def endings_of(row: LabelledRow, names: Endings) -> list[str]:
    """Return a row's endings.

    Raises:
        DataError: If one is missing, empty or no text.
    """
    if len(names) > 1:
        return [row.text(name) for name in names]
    value = row.value(names[0])
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{row.where} has {type(value).__name__} in {names[0]!r}, where a list is needed.")
    elements = {f"{names[0]}[{number}]": text for number, text in enumerate(value)}
    return [LabelledRow(row.where, elements).text(name) for name in elements]


def _numbered(fields: Mapping[str, Any]) -> dict[str, Endings]:
    """Return the columns that have a word and consecutive numbers, by their word in lower case."""
    found: dict[str, dict[int, str]] = {}
    for name in fields:
        match = re.fullmatch(r"(.*?)[ _-]?(\d+)", name)
        if match:
            found.setdefault(match[1].lower(), {})[int(match[2])] = name
    return {
        word: tuple(names[number] for number in sorted(names))
        for word, names in found.items()
        if len(names) > 1 and sorted(names) in (list(range(len(names))), list(range(1, len(names) + 1)))
    }
