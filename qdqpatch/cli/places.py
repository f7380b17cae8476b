"""What a command reads and what it writes, by its parameters: what is read must stay."""

from __future__ import annotations

from typing import Any

import click

READ = {
    "ckpt": "the checkpoint",
    "models": "a model",
    "file": "the file",
    "config_file": "the configuration",
    "source": "the calibration data",
    "data": "the data",
    "eval_data": "the data to evaluate on",
    "teacher": "the teacher",
}
"""What parameters name that is read, by what messages call it."""

WRITTEN = ("out", "html", "plot")
"""Those that name what is written."""


def inputs() -> dict[str, Any]:
    """Return what the command that runs reads, by what messages call it.

    Raises:
        UsageError: If it would write two things to one place.
    """
    given = click.get_current_context().params
    written = [(name, given[name]) for name in WRITTEN if given.get(name) is not None]
    if len({place.resolve() for _, place in written}) < len(written):
        names = " and ".join(f"--{name}" for name, _ in written)
        raise click.UsageError(f"{names} name the same file.")
    return {called: given[name] for name, called in READ.items() if given.get(name) is not None}
