"""Patterns over paths: globs in which braces hold numbers, as printed plans write the layers."""

from __future__ import annotations

import functools
import re
from fnmatch import fnmatchcase, translate

from qdqpatch.errors import ConfigError

_BRACES = re.compile(r"\{(.*?)\}")
_NUMBERS = re.compile(r"(?<!\d)\d+(?!\d)")
_BRACKET = re.compile(r"\[!?([^\]]+)\]")
_LONG_RANGE = re.compile(r"\d\d+-\d+|\d+-\d\d+")
_LONG_NUMBERS = re.compile(r"(\d+,)+\d\d+|\d\d+(,\d+)+")


def check_pattern(pattern: str) -> None:
    """Find out whether a pattern means what it looks like.

    Raises:
        ConfigError: If braces hold something else than numbers and ranges of them, or a bracket, which
            stands for one character, holds numbers of several digits.
    """
    for braces in _BRACES.finditer(pattern):
        _ranges(braces[1], pattern)
    for bracket in _BRACKET.finditer(pattern):
        if _LONG_RANGE.search(bracket[1]) or _LONG_NUMBERS.search(bracket[1]):
            numbers = bracket[1].replace("-", "..")
            raise ConfigError(
                f"{bracket[0]} in the pattern {pattern!r} would match one character. For numbers write "
                f"{{{numbers}}}."
            )


def matches(pattern: str, path: str) -> bool:
    """Whether a path matches a pattern that `check_pattern` let pass.

    `*`, `?` and `[...]` are those of `fnmatch`; `*` also matches dots. `{0..11}` matches each whole number
    from 0 to 11, and `{0..2,5}` those from 0 to 2 and 5.

    Examples:
        >>> matches("*.layer.{0..11}.output", "encoder.layer.10.output")
        True
    """
    if "{" not in pattern:
        return fnmatchcase(path, pattern)
    globs, ranges, with_any_numbers = _read(pattern)
    if with_any_numbers.fullmatch(path) is None:
        return False
    numbers = set(_NUMBERS.findall(path))
    expression = globs[0]
    for allowed, glob in zip(ranges, globs[1:], strict=True):
        found = [text for text in numbers if any(low <= int(text) <= high for low, high in allowed)]
        if not found:
            return False
        expression += rf"(?<!\d)(?:{'|'.join(found)})(?!\d)" + glob
    return re.fullmatch(expression, path, re.DOTALL) is not None


@functools.lru_cache(maxsize=1024)
def _read(pattern: str) -> tuple[list[str], list[list[tuple[int, int]]], re.Pattern[str]]:
    """Return what is around braces, as regular expressions, what is in them, and all with any numbers."""
    texts = _BRACES.split(pattern)  # glob, inside of braces, glob, ...
    globs = [translate(glob)[: -len(r"\Z")] for glob in texts[::2]]  # which need not end there
    ranges = [_ranges(inside, pattern) for inside in texts[1::2]]
    return globs, ranges, re.compile(r"(?<!\d)\d+(?!\d)".join(globs), re.DOTALL)


def _ranges(inside: str, pattern: str) -> list[tuple[int, int]]:
    """Return the lowest and the highest number of each range in braces."""
    ranges = []
    for text in inside.split(","):
        low, dots, high = text.partition("..")
        if not low.isdecimal() or (dots and not high.isdecimal()) or (dots and int(high) < int(low)):
            raise ConfigError(
                f"{{{inside}}} in the pattern {pattern!r} is not a range of numbers: write them from low to "
                "high, as {0..11} or {0..2,5}."
            )
        ranges.append((int(low), int(high if dots else low)))
    return ranges
