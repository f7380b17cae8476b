"""Figures drawn by Matplotlib, written as files: how they look, and what can go wrong."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdqpatch.errors import ReportError
from qdqpatch.packages import pip_install

FORMATS = (".png", ".svg")

TEXT = "#3d464f"

STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text
    "svg.hashsalt": "qdqpatch",
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.edgecolor": "#c3c9d0",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def check_can_plot(file: Path) -> None:
    """Find out before the work whether a figure can be drawn and written.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    if file.suffix.lower() not in FORMATS:
        raise ReportError(f"Cannot plot to {file}: the name must end in {' or '.join(FORMATS)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ReportError(f"The chart needs {error.name}: {pip_install('matplotlib')}") from error
    check_can_write(file)


def check_can_write(file: Path) -> None:
    """Find out before the work whether a file can be written.

    Raises:
        ReportError: If it cannot.
    """
    if file.exists() and not file.is_file():
        raise ReportError(f"Cannot write {file}: it is there and not a file.")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ReportError(f"Cannot write {file}: {error.strerror} ({folder}).") from error


def write_figure(file: Path, draw: Callable[[], Any]) -> None:
    """Write a figure: all of it or, if anything fails, nothing. A file that is there is replaced.

    Args:
        file: A name that ends in one of `FORMATS`.
        draw: Returns the `matplotlib.figure.Figure`; called where `STYLE` holds.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    check_can_plot(file)
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = draw()
        kind = file.suffix.lower()
        undated = {"Date": None} if kind == ".svg" else {}
        replace_file(
            file, lambda staging: figure.savefig(staging, format=kind[1:], dpi=150, metadata=undated)
        )


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there when it is complete; folders are made.

    Raises:
        ReportError: If it cannot be written. What was there before is there still.
    """
    staging = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(staging)
            staging.replace(file)
        finally:
            with contextlib.suppress(OSError):
                staging.unlink()
    except OSError as error:
        raise ReportError(f"Cannot write {file}: {error.strerror}.") from error
