"""Figures drawn by Matplotlib, written as files: how they look, and what can go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qdqpatch.errors import ReportError
from qdqpatch.output.file import check_file, replace_file
from qdqpatch.packages import require

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


def check_can_plot(file: Path, inputs: Mapping[str, Any] | None = None) -> None:
    """Find out before the work whether a figure can be drawn and written.

    Args:
        file: The file.
        inputs: What is read and must stay, by what it is called.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    if file.suffix.lower() not in FORMATS:
        raise ReportError(f"Cannot plot to {file}: the name must end in {' or '.join(FORMATS)}.")
    require("The chart", "matplotlib", error=ReportError)
    check_file(file, inputs=inputs)


def write_figure(file: Path, draw: Callable[[], Any]) -> None:
    """Write a figure: all of it or, if anything fails, nothing. A figure of ours that is there is replaced.

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
        facts = {"Date": None, "Creator": "qdqpatch"} if kind == ".svg" else {"Software": "qdqpatch"}
        replace_file(file, lambda staging: figure.savefig(staging, format=kind[1:], dpi=150, metadata=facts))
