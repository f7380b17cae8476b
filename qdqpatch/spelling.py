"""How messages spell what depends on their reader, and what has to agree with a number.

What a reader can change is an argument in Python, and an option on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

OPTIONS = {
    "text": "--text-column",
    "text_pair": "--text-pair-column",
    "label": "--label-column",
    "stride": "--doc-stride",
    "longest_answer": "--max-answer-length",
    "distillation": "--distill",
    "float_weights": "--weights fp32",
}
"""The options whose name is not that of the argument."""

_TYPED: ContextVar[bool] = ContextVar("typed", default=False)


@contextmanager
def on_command_line() -> Iterator[None]:
    """Let messages in the block be for a reader at a terminal."""
    token = _TYPED.set(True)
    try:
        yield
    finally:
        _TYPED.reset(token)


def spelled(python: str, option: str | None = None) -> str:
    """Return the one of two spellings that the reader knows.

    Args:
        python: For those who call from Python, such as `max_length` or `check=False`.
        option: For those at a terminal, such as `--no-check`; None for the option of that argument.
    """
    if not _TYPED.get():
        return python
    if option is not None:
        return option
    return OPTIONS.get(python) or f"--{python.replace('_', '-')}"


def form(count: int, one: str, many: str | None = None) -> str:
    """Return the form of a word for a number: `one` for 1, else `many`; None for `one` with an s."""
    return one if count == 1 else f"{one}s" if many is None else many


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number and what is counted, as `1 batch` or `2 batches`; words as for `form`."""
    return f"{count} {form(count, one, many)}"
