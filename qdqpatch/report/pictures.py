"""Histograms with their ranges as small SVG pictures, drawn by Matplotlib."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from qdqpatch.calibration.statistics import TensorStatistics

WIDTH, HEIGHT = 4.4, 1.75
"""Of a picture, in inches of 72 SVG units."""

AXES = (0.085, 0.14, 0.895, 0.8)
"""Where the histogram stands in it: left, bottom, width, height, as shares of the whole."""

BARS = 128
"""As many a histogram has at most: more could not be told apart."""

INSIDE, CLIPPED, LINE, TEXT = "#4477aa", "#cc3311", "#7a1505", "#5b6570"
BEYOND, BETWEEN = "#fbe3dc", "#e6eef6"
"""The shade beyond one range, and that between several."""

SVG = "{http://www.w3.org/2000/svg}"
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text, to be found and read aloud
    "svg.hashsalt": "qdqpatch",
    "font.size": 8,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.edgecolor": "#c3c9d0",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}

_COORDINATES = re.compile(r"([MLz])\s*([-\d.]*)\s*([-\d.]*)")


def view_box() -> str:
    """Return the part of a picture that the histogram fills, as an SVG `viewBox`."""
    left, bottom, width, height = AXES
    box = (left * WIDTH, (1 - bottom - height) * HEIGHT, width * WIDTH, height * HEIGHT)
    return " ".join(f"{72 * edge:.1f}" for edge in box)


class Painter:
    """Draws one histogram after the other in the same figure, which takes a fraction of the time."""

    def __init__(self) -> None:
        with rc_context(STYLE):
            self._figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="none")
            FigureCanvasSVG(self._figure)
            axes = self._figure.add_axes(AXES, facecolor="none")
            axes.tick_params(length=0, pad=3)
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            whole = axes.get_xaxis_transform()
            self._band = axes.axvspan(0, 1, color=BEYOND, gid="band", lw=0, clip_on=False)
            self._inside = axes.stairs([1], [0, 1], fill=True, color=INSIDE, lw=0, gid="inside")
            self._clipped = axes.stairs([1], [0, 1], fill=True, color=CLIPPED, lw=0, gid="clipped")
            (self._line,) = axes.plot([0, 0], [0, 1], color=LINE, lw=1.3, transform=whole, gid="line")
            self._label = axes.text(0, 1, "", transform=whole, color=LINE, va="top", weight="bold")
            for artist in (self._inside, self._clipped, self._line):
                artist.set_clip_on(False)
            self._axes = axes

    def draw(self, name: str, description: str, seen: TensorStatistics, low: float, high: float) -> str:
        """Return an `<svg>` element for a page of HTML.

        Args:
            name: The `id` of the group of the shapes, from which smaller copies can be made.
            description: What a screen reader says.
            seen: The histogram.
            low: The range; if there are several, the lowest.
            high: The highest range.
        """
        counts, edges = _bars(seen)
        end = max(seen.amax, high, edges[1])
        inside, clipped = _split(counts, edges, high if high < seen.amax else np.inf)
        top = max(float(np.log10(counts.max())), 1.0)
        with rc_context(STYLE):
            self._axes.set_xlim(0, end * 1.01)
            self._axes.set_ylim(-0.3, top * 1.15)
            powers = range(0, int(top) + 1, 1 if top < 3 else 2 if top < 7 else 3)
            self._axes.set_yticks(list(powers), [_power(power) for power in powers])
            for patch, (heights, limits) in ((self._inside, inside), (self._clipped, clipped)):
                patch.set_visible(len(heights) > 0)
                if len(heights):
                    patch.set_data(np.log10(np.maximum(heights, 0.5)), limits, baseline=-0.3)
            several = low < high
            self._band.set_bounds(low, 0, high - low if several else end * 1.01 - high, 1)
            self._band.set_facecolor(BETWEEN if several else BEYOND)
            self._line.set_xdata([high, high])
            left = high > end / 2
            self._label.set(x=high + (-0.01 if left else 0.01) * end, text=f"{high:.4g}")
            self._label.set_horizontalalignment("right" if left else "left")
            stream = io.StringIO()
            self._figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator")))
        return _inline(stream.getvalue(), name, description)


def _bars(seen: TensorStatistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the histogram with fewer bins: counts and edges."""
    filled = int(np.flatnonzero(seen.counts)[-1]) + 1
    together = -(-filled // BARS)
    starts = np.arange(0, filled, together)
    counts = np.add.reduceat(seen.counts[:filled], starts).astype(np.float64)
    edges = np.append(starts, filled) * seen.width  # the last bar may stand for fewer bins
    return counts, edges


def _split(counts: NDArray[np.float64], edges: NDArray[np.float64], at: float) -> tuple[Any, Any]:
    """Cut the histogram in two; a bar that is cut has its height on both sides."""
    first = int(np.clip(np.searchsorted(edges, at) - 1, 0, len(counts)))
    if at >= edges[-1]:
        return (counts, edges), (counts[:0], edges[:0])
    inside = counts[: first + 1], np.append(edges[: first + 1], at)
    clipped = counts[first:], np.insert(edges[first + 1 :], 0, at)
    return (inside if at > 0 else (counts[:0], edges[:0])), clipped


def _power(exponent: int) -> str:
    """Write a power of ten as `1`, `100`, `10k`, `1M`."""
    unit, rest = divmod(exponent, 3)
    return str(10**rest) + ("", "k", "M", "G", "T", "P", "E")[unit]


def _inline(text: str, name: str, description: str) -> str:
    """Return Matplotlib's SVG as a part of a page: without what HTML does not need, and with its own ids."""
    root = ElementTree.fromstring(text)
    picture = ElementTree.Element(
        "svg", {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    )
    shapes = ElementTree.SubElement(picture, "g", {"id": name})
    for group in root.iter(f"{SVG}g"):
        for element in group:
            if element.tag == f"{SVG}path" and element.get("d", "").strip():
                is_shape = group.get("id") in ("band", "inside", "clipped", "line")
                if not is_shape and "stroke: #c3c9d0" not in element.get("style", ""):
                    continue  # backgrounds, which are invisible
                path = {
                    "d": _short_path(element.attrib["d"]),
                    "style": _short_style(element.get("style", "")),
                }
                ElementTree.SubElement(shapes if is_shape else picture, "path", path)
            elif element.tag == f"{SVG}text" and (element.text or "").strip():
                kept = {key: f"{float(element.attrib[key]):.1f}" for key in ("x", "y")}
                kept["style"] = _short_style(element.get("style", ""))
                ElementTree.SubElement(picture, "text", kept).text = (element.text or "").strip()
    return ElementTree.tostring(picture, encoding="unicode")


def _short_path(data: str) -> str:
    """Round to tenths of a unit, and write lines along the axes with one number."""
    parts, x, y = [], "", ""
    for command, *point in _COORDINATES.findall(data):
        if command == "z":
            parts.append("z")
            continue
        new_x, new_y = (f"{float(coordinate):.1f}".removesuffix(".0") for coordinate in point)
        if command == "L" and new_y == y:
            parts.append(f"H{new_x}" if new_x != x else "")
        elif command == "L" and new_x == x:
            parts.append(f"V{new_y}")
        else:
            parts.append(f"{command}{new_x} {new_y}")
        x, y = new_x, new_y
    return "".join(parts)


def _short_style(style: str) -> str:
    """Drop the fonts, which are the page's, and blanks."""
    rules = [rule.strip() for rule in style.split(";")]
    kept = [rule.replace(": ", ":") for rule in rules if not rule.startswith(("font", "stroke-linecap"))]
    return ";".join(kept)
