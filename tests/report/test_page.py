"""The page of histograms and ranges."""

import html.parser
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from reports import HEAD, calibrated_checkpoint, report, reports_of, statistics
from torch import Tensor

import qdqpatch
from qdqpatch.errors import ReportError
from qdqpatch.report.formatting import decibels_text, range_text
from qdqpatch.report.page import render_page, write_page
from qdqpatch.report.quantizers import worst_first


class Page(html.parser.HTMLParser):
    """What a page holds: its elements with their attributes, and that every one is closed."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, attribute: str) -> list[str]:
        return [element[attribute] or "" for _, element in self.elements if attribute in element]


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    found = Page(page)
    assert "http://" not in page
    assert "https://" not in page
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "img", "link", "iframe", "object"})
    assert all(target.startswith("#") for target in found.values("href"))
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_anchors_lead_somewhere_and_are_unique(page: str) -> None:
    found = Page(page)
    identifiers = found.values("id")
    assert len(set(identifiers)) == len(identifiers)
    assert {target[1:] for target in found.values("href")} <= set(identifiers)


def test_every_quantizer_is_there_worst_first(page: str, calibrated_folder: Path) -> None:
    reports = worst_first(reports_of(calibrated_folder))
    rows = re.findall(r'<th scope="row" class="path"><a href="#[\w-]+">(bert[^<]+)</a>', page)
    assert rows == [row.path for row in reports]
    assert [decibels_text(row) for row in reports] == sorted(map(decibels_text, reports), key=float)
    figures = re.findall(
        r'<figure id="(picture-\d+)">\n<h3 class="path">([^<]+)</h3>', page.replace("<wbr>", "")
    )
    assert [int(name.removeprefix("picture-")) for name, _ in figures] == list(range(1, len(figures) + 1))
    assert figures[0][1] == reports[0].path
    shown = [path for _, path in figures]
    assert shown == sorted(shown, key=rows.index)
    for row in reports:
        assert f">{range_text(row)}</td>" in page


def test_quantizers_that_saw_the_same_share_a_picture(page: str) -> None:
    # 40 quantizers: of each layer, query, key, value and the residual add read one tensor, and the
    # feed-forward and its residual add another: 4 fewer pictures.
    assert len(re.findall("<figure ", page)) == 40 - 2 * 4
    caption = re.search(r"The same for (.*)</p>", page)
    assert caption is not None


def test_pictures_have_names_for_those_who_do_not_see_them(page: str) -> None:
    pictures = [element for tag, element in Page(page).elements if tag == "svg"]
    assert len(pictures) == 40 + 32
    for attributes in pictures:
        if "role" in attributes:
            assert re.match(
                "Histogram of the magnitudes at bert.*: the largest is .*", attributes["aria-label"]
            )
        else:
            assert attributes["aria-hidden"] == "true"


def test_a_picture_shows_where_the_range_is() -> None:
    from qdqpatch.report.pictures import AXES, WIDTH, Painter

    values = torch.linspace(0, 1, 10_001)[1:]
    seen = statistics(values)
    svg = Painter().draw("name", "what it is", seen, 0.25, 0.25)
    line = re.search(r'd="M([\d.]+) [\d.]+V[\d.]+" style="fill:none;stroke:#7a1505', svg)
    assert line is not None
    left, width = AXES[0] * WIDTH * 72, AXES[2] * WIDTH * 72
    assert float(line[1]) == pytest.approx(left + width * 0.25 / 1.01, abs=0.2)
    inside, clipped = (
        re.search(rf'd="([^"]+)" style="fill:{color}"', svg) for color in ("#4477aa", "#cc3311")
    )
    assert inside is not None
    assert clipped is not None
    assert float(re.findall(r"[HM]([\d.]+)", inside[1])[-1]) == float(line[1])
    assert float(re.findall(r"M([\d.]+)", clipped[1])[0]) == float(line[1])
    whole = Painter().draw("name", "what it is", seen, 1.0, 1.0)
    assert "#4477aa" in whole
    assert "#cc3311" not in whole


def test_drawing_another_picture_first_changes_nothing() -> None:
    from qdqpatch.report.pictures import Painter

    first, second = statistics(torch.randn(99)), statistics(100 * torch.rand(999))
    painter = Painter()
    for seen, amax in ((first, 0.5), (second, 120.0), (second, 7.0), (first, 0.5)):
        assert painter.draw("name", "text", seen, amax, amax) == Painter().draw(
            "name", "text", seen, amax, amax
        )


@pytest.mark.parametrize("values", [torch.zeros(5), torch.tensor([1e-20, 1e-12]), torch.tensor([3e38])])
@pytest.mark.parametrize("amax", [0.0, 1.0])
def test_extreme_tensors_can_be_drawn(values: Tensor, amax: float) -> None:
    from qdqpatch.report.pictures import Painter

    assert "nan" not in Painter().draw("name", "text", statistics(values), amax, amax)


def test_the_page_is_the_same_each_time(calibrated_folder: Path, page: str) -> None:
    assert render_page("calibrated", HEAD, reports_of(calibrated_folder)) == page


def test_names_are_escaped(calibrated_folder: Path) -> None:
    text = render_page("<script>alert(1)</script>", "A&B", [report("<b>.layer.0.q", 3.0)])
    assert "<script" not in text
    assert "A&amp;B" in text
    assert "<b>" not in text


def test_candidates_are_shown_if_ranges_were_compared(tmp_path: Path, page: str) -> None:
    assert "chosen</td>" not in page
    reports = reports_of(calibrated_checkpoint(tmp_path, "auto"))
    text = render_page("auto", HEAD, reports)
    activations = [row for row in reports if row.seen is not None and row.seen.errors]
    assert len(activations) == 28
    assert text.count("chosen</td>") == len(re.findall('<table class="candidates">', text)) > 0
    for activation in activations:
        assert activation.seen is not None
        assert float(activation.amax) == min(
            activation.seen.errors, key=lambda amax: (activation.seen.errors[amax], amax)
        )


def test_a_page_without_statistics_says_so() -> None:
    text = render_page("bare", HEAD, [report("encoder.layer.0.q", None)])
    assert "no calibration statistics" in text
    assert "<figure" not in text


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "page.html"
    write_page(file, "first", HEAD, [report("q", 1.0)])
    write_page(file, "second", HEAD, [report("q", 1.0)])
    assert "second" in file.read_text()

    def fail(self: Path, text: str, encoding: str) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ReportError, match=r"page\.html: No space left on device"):
        write_page(file, "third", HEAD, [report("q", 1.0)])
    assert "second" in file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_places_that_no_page_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "page.html", Path("/dev/null"), tmp_path / ("x" * 300)):
        with pytest.raises(ReportError, match="Cannot write"):
            write_page(place, "title", HEAD, [report("q", 1.0)])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match="The page needs matplotlib: pip install matplotlib"):
        render_page("title", HEAD, [])


def test_figures_need_no_drawing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdqpatch, "report", qdqpatch.report)  # which the import below exchanges
    for name in [name for name in sys.modules if name.startswith("qdqpatch.report")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "jinja2"):
        monkeypatch.setitem(sys.modules, name, None)
    assert importlib.import_module("qdqpatch.report.page").render_page is not render_page


def test_long_lists_are_folded_and_there_is_a_dark_mode(page: str) -> None:
    _, *folded = page.split("<details>")
    assert len(folded) == 2
    rows, pictures = (part.partition("</details>") for part in folded)
    assert rows[0].startswith("<summary>The other 20 quantizers</summary>")
    assert rows[0].count('<td class="thumbnail">') == 20
    assert rows[2].count("<figure ") == 12
    assert pictures[0].startswith("<summary>The other 20 histograms</summary>")
    assert pictures[0].count("<figure ") == 20
    assert "@media (prefers-color-scheme: dark)" in page
    assert "#fff" not in page.replace("--page: #fff", "")
