"""Fold rows that differ only in a layer's number into one, so that a deep model fits on a screen."""

from __future__ import annotations

import re
from collections.abc import Iterable

Row = tuple[str, str, str]
"""A module's path, and two texts about it."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def fold(rows: Iterable[Row]) -> list[Row]:
    """Join rows whose paths differ only in their first number and whose texts are equal; order is kept.

    The joined path is a pattern of `qdqpatch.config.patterns`: an override with it matches all of them.

    Examples:
        >>> fold([("layer.0.query", "linear", "int8"), ("layer.1.query", "linear", "int8")])
        [('layer.{0..1}.query', 'linear', 'int8')]
    """
    groups: dict[Row, list[int]] = {}
    for path, first, second in rows:
        numbers = [int(number) for number in _NUMBER.findall(path)[:1]]
        groups.setdefault((_NUMBER.sub("#", path, count=1), first, second), []).extend(numbers)
    return [
        (path.replace("#", _ranges(sorted(set(numbers)))) if numbers else path, first, second)
        for (path, first, second), numbers in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers as `3` or `{0..2,5}`, as overrides read them."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs) + "}"
