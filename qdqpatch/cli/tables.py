"""Tables on standard output: nothing is cut, and what is too wide for the terminal has a line of its own."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

import click

Row = Sequence[str]

NARROWEST = 12
"""What a column that is wrapped has at least, if it has so much."""

WIDE = 200
"""The width where there is no terminal to ask."""


def print_table(title: str, columns: Row, rows: Iterable[Row], numbers: Sequence[str] = ()) -> None:
    """Print a table and an empty line.

    If it is wider than the terminal, the first column of each row, the important one, has a line of its own,
    and the others stand below it; the last one is wrapped between words if they are still too wide.

    Args:
        title: The line above the table; empty for none.
        columns: The columns' names.
        rows: The cells.
        numbers: The names of columns whose cells are put at the right.
    """
    if title:
        click.secho("\n".join(_wrapped(title, width())), bold=True)
    for line in table_lines(columns, list(rows), width(), numbers):
        click.echo(line)
    click.echo()


def print_text(text: str) -> None:
    """Print a sentence, wrapped between words if it is wider than the terminal."""
    click.echo("\n".join(_wrapped(text, width())))


def width() -> int:
    """Return the width of the terminal, by the variable COLUMNS if it is set."""
    known = (sys.stdout is not None and sys.stdout.isatty()) or "COLUMNS" in os.environ
    return shutil.get_terminal_size().columns if known else WIDE


def _rule(length: int) -> str:
    """Return a line, of what the encoding of the output has."""
    sign = "─"
    try:
        sign.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        sign = "-"
    return sign * length


def table_lines(columns: Row, rows: Sequence[Row], room: int, numbers: Sequence[str] = ()) -> list[str]:
    """Return the lines of a table that is at most `room` wide, if no word is longer than that."""
    at_right = [name in numbers for name in columns]
    whole = list(_aligned([columns, *rows], at_right, gap=2))
    if max(map(len, whole)) <= room:
        return [whole[0], _rule(max(map(len, whole))), *whole[1:]]
    below = list(_below(columns, rows, at_right, room))
    lines = [columns[0], below[0], _rule(room)]
    before = None
    for row, line in zip(rows, below[1:], strict=True):
        if row[0] != before:
            lines += _wrapped(row[0], room)
        lines.append(line)
        before = row[0]
    return lines


def _below(columns: Row, rows: Sequence[Row], at_right: Sequence[bool], room: int) -> Iterator[str]:
    """Yield what stands below the first column's cells, of the names and of each row; maybe several lines."""
    cells = [row[1:] for row in (columns, *rows)]
    *before, last = zip(*cells, strict=True)
    widths = [max(map(len, column)) for column in before]
    least = min(NARROWEST, max(map(len, last)))
    gap = 2 if room >= 2 + sum(widths) + 2 * len(widths) + least else 1
    indent = " " * (2 + sum(widths) + gap * len(widths))
    wrapped = [_wrapped(cell, max(room - len(indent), least)) for cell in last]
    first_lines = [[*row[:-1], lines[0] if lines else ""] for row, lines in zip(cells, wrapped, strict=True)]
    for line, lines in zip(_aligned(first_lines, at_right[1:], gap), wrapped, strict=True):
        yield "\n".join([f"  {line}", *(f"{indent}{more}" for more in lines[1:])])


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]


def _aligned(rows: Sequence[Row], at_right: Sequence[bool], gap: int) -> Iterator[str]:
    """Yield each row as a line, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(size) if right else cell.ljust(size)
            for cell, size, right in zip(row, widths, at_right, strict=True)
        ]
        yield (" " * gap).join(cells).rstrip()
