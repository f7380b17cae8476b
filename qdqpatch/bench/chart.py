"""Latencies as bars, one panel for each shape, drawn by Matplotlib."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from qdqpatch.bench.report import Benchmark, BenchmarkRow, rounded
from qdqpatch.engines.shapes import Shape
from qdqpatch.report.figures import TEXT, write_figure
from qdqpatch.spelling import counted

BASELINE = "#9aa3ad"
COLORS = {"torch": "#ee8866", "onnxruntime": "#4477aa", "openvino": "#8a63a8"}

WIDTH, BAR, PANEL = 8.0, 0.3, 0.75
"""Inches: of the chart; height of a bar with its gap; height of what else a panel has."""


def write_chart(file: Path, report: Benchmark) -> None:
    """Draw the chart: all of it or, if anything fails, nothing. A figure of ours that is there is replaced.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    write_figure(file, lambda: _draw(report))


def _draw(report: Benchmark) -> Any:
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


def _panel(axes: Any, shape: Shape, rows: list[BenchmarkRow], report: Benchmark) -> None:
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
    sequences = counted(shape.batch, "sequence")
    axes.set_title(f"{sequences} of {counted(shape.length, 'token')}", loc="left", fontsize=9, weight="bold")
