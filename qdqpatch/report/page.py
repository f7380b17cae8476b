"""A page of HTML with every quantizer's histogram and range, in one file that loads nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from qdqpatch.errors import ReportError
from qdqpatch.output.file import replace_file
from qdqpatch.packages import require
from qdqpatch.report.formatting import decibels_text, range_text, share_text
from qdqpatch.report.quantizers import QuantizerReport, worst_first

TEMPLATE = "page.html.j2"

GOOD_DB, POOR_DB = 40.0, 10.0
"""Where the colors of the overview end."""

ROWS, PICTURES = 20, 12
"""So many of the table's rows and of the histograms are seen at once; the others are folded away."""


@dataclass(frozen=True)
class Picture:
    """A histogram, and the quantizers that it belongs to: those that saw the same and have the same range.

    Attributes:
        name: Its anchor in the page.
        svg: The picture.
        reports: The quantizers.
    """

    name: str
    svg: str
    reports: list[QuantizerReport] = field(default_factory=list)

    @property
    def candidates(self) -> list[tuple[float, float, bool]]:
        """Candidate ranges that were compared, error relative to the least one's, and which was chosen."""
        seen, amax = self.reports[0].seen, self.reports[0].amax
        assert seen is not None, "only what was seen is drawn"
        least = min(seen.errors.values(), default=0.0)
        return [
            (candidate, error / least if least else 1.0, bool(amax == candidate))
            for candidate, error in sorted(seen.errors.items())
        ]


def check_can_draw() -> None:
    """Find out before the work whether the libraries that draw are there.

    Raises:
        ReportError: If they are not.
    """
    require("The page", "jinja2", "matplotlib", error=ReportError)


def write_page(file: Path, title: str, model: str, reports: Sequence[QuantizerReport]) -> None:
    """Write the page: all of it or, if anything fails, nothing. A page that is there is replaced.

    Args:
        file: The file to write.
        title: What the checkpoint is called.
        model: The name of the model's class.
        reports: What is known of the quantizers.

    Raises:
        ReportError: If Matplotlib or Jinja2 is not installed, or the file cannot be written.
    """
    text = render_page(title, model, reports)
    replace_file(file, lambda staging: staging.write_text(text, encoding="utf-8"))


def render_page(title: str, model: str, reports: Sequence[QuantizerReport]) -> str:
    """Return the page; the same for the same arguments, byte for byte.

    Raises:
        ReportError: If Matplotlib or Jinja2 is not installed.
    """
    check_can_draw()
    import jinja2

    from qdqpatch.report.pictures import view_box

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(
        breakable=_breakable, share=share_text, decibels=decibels_text, range=range_text
    )
    ordered = worst_first(reports)
    pictures = _draw(ordered)
    known = [quantizer.sqnr_db for quantizer in ordered if quantizer.sqnr_db is not None]
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        title=title,
        model=model,
        ordered=ordered,
        compared=any(picture.candidates for picture in pictures),
        pictures=pictures,
        rows_shown=ROWS,
        pictures_shown=PICTURES,
        anchors={report.path: picture.name for picture in pictures for report in picture.reports},
        overview=_overview(reports),
        layers=sorted({report.layer for report in reports if report.layer is not None}),
        with_range=sum(report.amax is not None for report in reports),
        median=sorted(known)[len(known) // 2] if known else None,
        judged=len(known),
        color=_color,
        view_box=view_box(),
    )


def _breakable(path: str) -> Any:
    """Return a path as HTML that may be broken into lines after a dot or an underscore."""
    from markupsafe import Markup, escape

    text = str(escape(path))
    return Markup(text.replace(".", ".<wbr>").replace("_", "_<wbr>"))


def _draw(reports: Sequence[QuantizerReport]) -> list[Picture]:
    """Draw what was seen, once for those quantizers that saw the same and have the same range."""
    from qdqpatch.report.pictures import Painter

    painter = Painter()
    pictures: dict[Any, Picture] = {}
    for report in reports:
        seen, amax = report.seen, report.amax
        if seen is None or amax is None:
            continue
        key = (seen.counts.tobytes(), seen.width, amax.numpy().tobytes(), str(seen.errors), seen.levels)
        if key not in pictures:
            name = f"picture-{len(pictures) + 1}"
            description = (
                f"Histogram of the magnitudes at {report.path}, on a logarithmic scale: the largest is "
                f"{seen.amax:.4g}, the range {range_text(report)}."
            )
            low, high = float(amax.min()), float(amax.max())
            pictures[key] = Picture(name, painter.draw(f"{name}-shapes", description, seen, low, high))
        pictures[key].reports.append(report)
    return list(pictures.values())


def _overview(reports: Sequence[QuantizerReport]) -> dict[str, dict[int, QuantizerReport]]:
    """Return the quantizers of the layers by role, then by layer."""
    rows: dict[str, dict[int, QuantizerReport]] = {}
    for report in reports:
        if report.layer is not None:
            rows.setdefault(report.role, {})[report.layer] = report
    return rows


def _color(sqnr_db: float) -> str:
    """Return a background for dark text: red where poor, over pale yellow to blue where good."""
    place = min(max((sqnr_db - POOR_DB) / (GOOD_DB - POOR_DB), 0.0), 1.0)
    stops = [(244, 165, 138), (250, 238, 200), (176, 208, 236)]
    first = stops[0] if place < 0.5 else stops[1]
    second = stops[1] if place < 0.5 else stops[2]
    part = 2 * place - (place >= 0.5)
    mixed = (round(a + part * (b - a)) for a, b in zip(first, second, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
