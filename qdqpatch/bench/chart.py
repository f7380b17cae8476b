"""Latencies as bars, one panel for each shape, drawn by Matplotlib."""

from __future__ import annotations

import contextlib
import os
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from qdqpatch.bench.report import Report, Row, rounded
from qdqpatch.errors import ReportError
from qdqpatch.shapes import Shape

FORMATS = (".png", ".svg")

BASELINE = "#9aa3ad"
COLORS = {"torch": "#ee8866", "onnxruntime": "#4477aa", "openvino": "#8a63a8"}
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

WIDTH, BAR, PANEL = 8.0, 0.3, 0.75
"""Inches: of the chart; height of a bar with its gap; height of what else a panel has."""


def check_can_plot(file: Path) -> None:
    """Find out before the work whether the chart can be drawn and written.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    if file.suffix.lower() not in FORMATS:
        raise ReportError(f"Cannot plot to {file}: the name must end in {' or '.join(FORMATS)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ReportError(f'The chart needs {error.name}: pip install "qdqpatch[report]"') from error
    if file.exists() and not file.is_file():
        raise ReportError(f"Cannot write {file}: it is there and not a file.")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ReportError(f"Cannot write {file}: {error.strerror} ({folder}).") from error


def write_chart(file: Path, report: Report) -> None:
    """Draw the chart: all of it or, if anything fails, nothing. A file that is there is replaced.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    check_can_plot(file)
    from matplotlib import rc_context

    staging = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with rc_context(STYLE):
                figure = _draw(report)
                figure.savefig(staging, format=file.suffix.lower()[1:], dpi=150, metadata=_undated(file))
            staging.replace(file)
        finally:
            with contextlib.suppress(OSError):
                staging.unlink()
    except OSError as error:
        raise ReportError(f"Cannot write {file}: {error.strerror}.") from error


def _undated(file: Path) -> dict[str, None]:
    return {"Date": None} if file.suffix.lower() == ".svg" else {}


def _draw(report: Report) -> Any:
    """Return the figure; panels share the order of the bars, each has a scale of its own."""
    from matplotlib.figure import Figure

    heights = [PANEL + BAR * len(rows) for rows in report.by_shape.values()]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (shape, rows) in zip(panels, report.by_shape.items(), strict=True):
        _panel(axes, shape, rows, report)
    notes = (textwrap.fill(note, 110) for note in report.numbered_notes)
    legend = "latency of a run in ms: the bar is the median (p50), the line ends at p90"
    figure.supxlabel("\n".join([legend, *notes]), x=0.01, ha="left", fontsize=8)
    title = f"Latency, and speed-up over {report.baseline}; {report.conditions}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def _panel(axes: Any, shape: Shape, rows: list[Row], report: Report) -> None:
    places = range(len(rows))
    medians = [row.p50_ms or 0.0 for row in rows]
    slowest = [row.p90_ms or 0.0 for row in rows]
    colors = [BASELINE if row.name == report.baseline else COLORS[row.engine] for row in rows]
    axes.barh(places, medians, height=0.7, color=colors)
    axes.hlines(places, medians, slowest, color=TEXT, linewidth=1)
    for place, row, median, end in zip(places, rows, medians, slowest, strict=True):
        speedup = "" if row.speedup is None else f"   {row.speedup:.2f}x"
        text = "not run" if row.p50_ms is None else f"{rounded(median)} ms{speedup}"
        axes.annotate(
            text,
            (max(median, end), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(places, [row.name + report.mark(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(slowest, default=1.0))
    sequences = "1 sequence" if shape.batch == 1 else f"{shape.batch} sequences"
    axes.set_title(f"{sequences} of {shape.length} tokens", loc="left", fontsize=9, weight="bold")
