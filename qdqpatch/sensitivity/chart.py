"""The costs as bars, and above them what leaving units in float gains, drawn by Matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdqpatch.report.figures import TEXT, write_figure
from qdqpatch.sensitivity.measure import Sensitivity
from qdqpatch.sensitivity.report import cost_title, number
from qdqpatch.sensitivity.search import MixedPrecision
from qdqpatch.spelling import counted

INT8, FLOAT, LINE = "#4477aa", "#ee8866", "#9aa3ad"

WIDTH, BAR, CURVE, MARGIN = 8.0, 0.2, 3.0, 0.7
"""Inches: of the chart; height of a bar with its gap; of the curve; of what else a panel has."""


def write_chart(file: Path, sensitivity: Sensitivity, found: MixedPrecision | None = None) -> None:
    """Draw the chart: all of it or, if anything fails, nothing. A figure of ours that is there is replaced.

    Args:
        file: A name that ends in .png or .svg.
        sensitivity: The costs.
        found: What a search found; None leaves the curve out.

    Raises:
        ReportError: If Matplotlib is not installed, or the file cannot be written.
    """
    write_figure(file, lambda: _draw(sensitivity, found))


def _draw(sensitivity: Sensitivity, found: MixedPrecision | None) -> Any:
    from matplotlib.figure import Figure

    bars = MARGIN + BAR * len(sensitivity.costs)
    heights = [bars] if found is None else [CURVE, bars]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _bars(panels[-1], sensitivity, () if found is None else found.best.float_units)
    if found is not None:
        _curve(panels[0], sensitivity, found)
    return figure


def _bars(axes: Any, sensitivity: Sensitivity, float_units: tuple[str, ...]) -> None:
    names = [entry.unit.name for entry in sensitivity.costs]
    costs = [entry.cost for entry in sensitivity.costs]
    colors = [FLOAT if name in float_units else INT8 for name in names]
    drawn = axes.barh(range(len(names)), costs, height=0.7, color=colors)
    axes.bar_label(drawn, labels=[number(cost) for cost in costs], padding=4, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_title(cost_title(sensitivity), loc="left", fontsize=9, weight="bold")
    if float_units:
        from matplotlib.patches import Patch

        left = [Patch(color=FLOAT, label="left in float"), Patch(color=INT8, label="quantized")]
        axes.legend(handles=left, loc="lower right", frameon=False)


def _curve(axes: Any, sensitivity: Sensitivity, found: MixedPrecision) -> None:
    names = tuple(cost.unit.name for cost in sensitivity.costs)
    in_order = [trial for trial in found.trials if trial.float_units == names[: len(trial.float_units)]]
    points = sorted((len(point.float_units), point.value) for point in in_order)
    points.append((found.units, found.float_value))
    others = [(len(trial.float_units), trial.value) for trial in found.trials if trial not in in_order]
    axes.axhline(found.float_value, color=LINE, linewidth=1)
    axes.axhline(found.limit, color=LINE, linewidth=1, linestyle="--")
    axes.plot(
        *zip(*points, strict=True), color=INT8, marker="o", markersize=4, label="the costliest in float"
    )
    if others:
        axes.plot(*zip(*others, strict=True), color=INT8, marker="o", markersize=4, linestyle="none",
                  markerfacecolor="white", label="one of them quantized again")  # fmt: skip
    best = (len(found.best.float_units), found.best.value)
    axes.plot(
        *best, color=FLOAT, marker="o", markersize=9, linestyle="none", label=f"chosen: {best[0]} in float"
    )
    for value, text in ((found.float_value, "float"), (found.limit, f"drop of {found.max_drop:g}%")):
        axes.annotate(text, (1, value), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), color=TEXT,
                      textcoords="offset points", va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    axes.set_xlim(-0.5, found.units + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(f"units left in float, of {found.units}")
    axes.set_ylabel(found.metric)
    axes.legend(frameon=False, loc="best")
    title = f"What leaving units in float gains: {found.metric}, {counted(found.examples, 'example')}"
    axes.set_title(title, loc="left", fontsize=9, weight="bold")
