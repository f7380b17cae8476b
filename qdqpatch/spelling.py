"""How a message names what its reader can change: an argument in Python, an option on the command line."""

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
