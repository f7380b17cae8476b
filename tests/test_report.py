"""The figures about quantizers, and the page that shows them."""

import html.parser
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

import qdqpatch
from qdqpatch.calibration import Statistics, collect
from qdqpatch.calibration.histogram import Histogram
from qdqpatch.calibration.statistics import TensorStatistics
from qdqpatch.checkpoint.source import open_checkpoint
from qdqpatch.errors import ReportError
from qdqpatch.quantizer import TensorQuantizer, absolute_max
from qdqpatch.report import quantizers
from qdqpatch.report.page import render_page, write_page
from qdqpatch.report.quality import Quality, of_statistics, of_tensor
from qdqpatch.report.quantizers import QuantizerReport, load_statistics, report_quantizers, worst_first
from qdqpatch.report.texts import decibels_text, range_text, share_text
from qdqpatch.settings import QuantizerConfig
from qdqpatch.toolkit import QuantDescriptor

HEAD = "BertForMaskedLM"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# The histogram's share of a bin on either side of the range is a guess: off by a part of one bin's share.
SHARE_TOLERANCE = 2e-4
# Between 1/32 and 1/16 of a step lie in a bin, so the spread within bins changes next to nothing; the
# largest difference is from zeros and other values that gather in the first bin.
DB_TOLERANCE = 0.1


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(100_000, generator=generator)
    return {
        "normal": normal,
        "GELU": torch.nn.functional.gelu(3 * normal),
        "ReLU": normal.relu(),
        "probabilities": torch.softmax(4 * normal.view(1000, 100), -1),
        "outlier": torch.cat([normal, torch.tensor([100.0])]),
        "heavy tails": normal / torch.randn(100_000, generator=generator).abs().clamp(0.05),
    }


def statistics(values: Tensor, **settings: Any) -> TensorStatistics:
    return TensorStatistics.of(Histogram.of(values), None, quantizer(**settings))


def quantizer(**settings: Any) -> TensorQuantizer:
    return TensorQuantizer(QuantDescriptor(**settings))


# narrow_range: the histogram has no signs, and takes both sides to end at the range.
@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("fraction", [1.5, 1.0, 0.5, 0.1])
@pytest.mark.parametrize("name", tensors())
def test_figures_from_a_histogram_are_those_of_the_tensor(name: str, fraction: float, num_bits: int) -> None:
    values = tensors()[name]
    settings = {"num_bits": num_bits, "narrow_range": True}
    amax = fraction * values.abs().max()
    exact = of_tensor(values, amax, quantizer(**settings))
    found = of_statistics(statistics(values, **settings), float(amax))
    assert found.sqnr_db == pytest.approx(exact.sqnr_db, abs=DB_TOLERANCE)
    assert found.clipped_share == pytest.approx(exact.clipped_share, abs=SHARE_TOLERANCE)
    assert (found.clipped_share == 0) == (fraction >= 1)


def test_exact_figures_follow_their_definition() -> None:
    values = torch.tensor([0.2, -0.6, 1.0, -3.0])
    levels = torch.tensor([0.0, -1.0, 1.0, -1.0])  # 2 bits without the lowest: -1, 0, 1
    noise = float(((levels - values) ** 2).sum())
    found = of_tensor(values, torch.tensor(1.0), quantizer(num_bits=2, narrow_range=True))
    assert found.clipped_share == 0.25
    assert found.sqnr_db == pytest.approx(10 * np.log10(float((values**2).sum()) / noise), abs=1e-5)


def test_evenly_spread_values_have_six_decibels_a_bit() -> None:
    # Bennett: x^2 is 1/3 on average, and the noise step^2/12 with 2^b - 1 steps over both sides.
    values = torch.linspace(-1, 1, 200_001)
    for bits in (4, 6, 8):
        steps = 2**bits - 2
        found = of_statistics(statistics(values, num_bits=bits, narrow_range=True), 1.0)
        assert found.sqnr_db == pytest.approx(20 * np.log10(steps), abs=0.02)


def test_a_weight_with_a_range_per_channel() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0], [10.0], [100.0], [0.0]]
    )
    per_channel = quantizer(axis=0)
    amax = absolute_max(weight, 0)
    found = of_tensor(weight, amax, per_channel)
    noise = (per_channel.quantized(weight, amax) - weight).double().square().sum()
    assert found.clipped_share == 0
    assert found.sqnr_db == pytest.approx(float(10 * torch.log10(weight.double().square().sum() / noise)))
    half = of_tensor(weight, amax / 2, per_channel)
    assert half.clipped_share == float((weight.abs() > amax / 2).double().mean()) > 0


@pytest.mark.parametrize("amax", [0.0, 1.0])
def test_a_tensor_that_was_zero_everywhere(amax: float) -> None:
    assert of_statistics(statistics(torch.zeros(9)), amax) == Quality(0.0, None)
    assert of_tensor(torch.zeros(9), torch.tensor(amax), quantizer()) == Quality(0.0, None)


def test_a_range_of_zero_loses_everything() -> None:
    values = torch.linspace(0.5, 1, 64)
    exact = of_tensor(values, torch.tensor(0.0), quantizer())
    assert exact == of_statistics(statistics(values), 0.0) == Quality(1.0, 0.0)


def test_values_that_are_levels_have_no_noise() -> None:
    assert of_tensor(torch.arange(-127.0, 128), torch.tensor(127.0), quantizer()) == Quality(0.0, None)


def calibrated_checkpoint(folder: Path, method: str = "percentile") -> Path:
    """Write a calibrated model and what its quantizers saw, as `qdqpatch convert` does."""
    model = models.uncalibrated(HEAD)
    batches = [models.inputs(HEAD, seed) for seed in (2, 3)]
    found = collect(model, batches, compare=method == "auto")
    qdqpatch.calibrate(model, found, method=method).save_pretrained(folder)
    found.save(folder / quantizers.STATISTICS_FILE)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated_checkpoint(tmp_path_factory.mktemp("report") / "calibrated")


def reports_of(folder: Path, with_statistics: bool = True) -> list[QuantizerReport]:
    source = open_checkpoint(str(folder))
    found = load_statistics(source) if with_statistics else None
    return report_quantizers(source, source.plan(), source.ranges(), found, count_weights=True)


def test_every_quantizer_of_a_checkpoint_is_judged_by_what_it_quantizes(checkpoint: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(checkpoint)
    seen: dict[str, list[Tensor]] = {}
    for path, module in quantizers_of(model):
        module._if_quant = False  # as in the collection pass: the float model's tensors
        module.register_forward_hook(
            lambda _, inputs, output, path=path: seen.setdefault(path, []).append(inputs[0].flatten())
        )
    batches = [models.inputs(HEAD, seed, length=16, padded=False) for seed in range(20)]
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    source = open_checkpoint(str(checkpoint))
    found = collect(models.uncalibrated(HEAD), batches)
    reports = report_quantizers(source, source.plan(), source.ranges(), found)
    assert [each.path for each in reports if each.quality is None] == []
    for each in reports:
        module = model.get_submodule(each.path)
        is_weight = each.path.endswith("_weight_quantizer")
        weight = (
            model.get_parameter(each.path.replace("._weight_quantizer", ".weight")) if is_weight else None
        )
        exact = of_tensor(
            torch.cat(seen[each.path]) if weight is None else weight.detach(), module.amax, module
        )
        assert torch.equal(each.amax, module.amax)
        if is_weight:
            assert each.quality == exact
            continue
        assert each.quality.clipped_share == pytest.approx(exact.clipped_share, abs=SHARE_TOLERANCE)
        # int8 has a step more on the negative side, which the histogram does not know of, and the ranges
        # are from two batches: where many values are clipped, that is most of the noise.
        assert each.sqnr_db == pytest.approx(exact.sqnr_db, abs=0.5), each.path


def quantizers_of(model: torch.nn.Module) -> list[tuple[str, TensorQuantizer]]:
    return [(path, each) for path, each in model.named_modules() if isinstance(each, TensorQuantizer)]


def test_without_statistics_only_weights_are_judged(checkpoint: Path) -> None:
    for report in reports_of(checkpoint, with_statistics=False):
        is_weight = report.path.endswith("_weight_quantizer")
        assert (report.quality is not None) == is_weight
        assert report.amax is not None
        assert share_text(report) != "-" if is_weight else share_text(report) == "-"


def test_a_quantizer_without_a_range_has_no_figures(tmp_path: Path) -> None:
    models.uncalibrated(HEAD).save_pretrained(tmp_path)
    for report in reports_of(tmp_path):
        assert (report.amax, report.quality, report.sqnr_db) == (None, None, None)
        assert (range_text(report), decibels_text(report)) == ("from each input", "-")


def test_weights_in_a_bin_file_are_judged_alike(checkpoint: Path, tmp_path: Path) -> None:
    torch.save(AutoModelForMaskedLM.from_pretrained(checkpoint).state_dict(), tmp_path / "pytorch_model.bin")
    shutil.copy(checkpoint / "config.json", tmp_path)
    found = {each.path: each.quality for each in reports_of(tmp_path)}
    assert found == {each.path: each.quality for each in reports_of(checkpoint, with_statistics=False)}


def test_a_factor_on_the_range_counts() -> None:
    settings = QuantizerConfig(scale_amax=0.5)
    assert quantizers._effective(torch.tensor(3.0), settings) == 1.5


def test_worst_first_and_what_is_not_known_last() -> None:
    sqnr = [20.0, None, 5.0, None, 30.0]
    reports = [report(f"q{i}", each) for i, each in enumerate(sqnr)]
    assert [each.path for each in worst_first(reports)] == ["q2", "q0", "q4", "q1", "q3"]


def report(path: str, sqnr_db: float | None, share: float = 0.0) -> QuantizerReport:
    return QuantizerReport(path, QuantizerConfig(), torch.tensor(1.0), None, Quality(share, sqnr_db))


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (1e-9, "<0.001%"), (0.0001, "0.010%"), (0.5, "50.000%")]
)
def test_shares_are_written_as_percent(share: float, text: str) -> None:
    assert share_text(report("q", 1.0, share)) == text


def test_statistics_beside_the_weights_do_not_disturb_transformers(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(
        checkpoint, tmp_path / "without", ignore=shutil.ignore_patterns(quantizers.STATISTICS_FILE)
    )
    with_file = AutoModelForMaskedLM.from_pretrained(checkpoint, output_loading_info=True)
    without = AutoModelForMaskedLM.from_pretrained(tmp_path / "without", output_loading_info=True)
    models.assert_equal(with_file[0].state_dict(), without[0].state_dict())
    assert with_file[1] == without[1]
    assert len(AutoModel.from_pretrained(checkpoint).state_dict()) > 0
    shutil.copytree(checkpoint, tmp_path / "again")
    with_file[0].save_pretrained(tmp_path / "again")  # leaves the file there
    with_file[0].save_pretrained(tmp_path / "new")
    models.assert_equal(
        AutoModelForMaskedLM.from_pretrained(tmp_path / "again").state_dict(), without[0].state_dict()
    )
    assert len(Statistics.load(tmp_path / "again" / quantizers.STATISTICS_FILE)) == 28
    assert not (tmp_path / "new" / quantizers.STATISTICS_FILE).exists()


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
        return [each[attribute] or "" for _, each in self.elements if attribute in each]


@pytest.fixture(scope="module")
def page(checkpoint: Path) -> str:
    return render_page("calibrated", HEAD, reports_of(checkpoint))


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


def test_every_quantizer_is_there_worst_first(page: str, checkpoint: Path) -> None:
    reports = worst_first(reports_of(checkpoint))
    rows = re.findall(r'<th scope="row" class="path"><a href="#[\w-]+">(bert[^<]+)</a>', page)
    assert rows == [each.path for each in reports]
    assert [decibels_text(each) for each in reports] == sorted(map(decibels_text, reports), key=float)
    figures = re.findall(
        r'<figure id="(picture-\d+)">\n<h3 class="path">([^<]+)</h3>', page.replace("<wbr>", "")
    )
    assert [int(name.removeprefix("picture-")) for name, _ in figures] == list(range(1, len(figures) + 1))
    assert figures[0][1] == reports[0].path
    shown = [path for _, path in figures]
    assert shown == sorted(shown, key=rows.index)
    for each in reports:
        assert f">{range_text(each)}</td>" in page


def test_quantizers_that_saw_the_same_share_a_picture(page: str) -> None:
    # 40 quantizers: of each layer, query, key, value and the residual add read one tensor, and the
    # feed-forward and its residual add another: 4 fewer pictures.
    assert len(re.findall("<figure ", page)) == 40 - 2 * 4
    caption = re.search(r"The same for (.*)</p>", page)
    assert caption is not None


def test_pictures_have_names_for_those_who_do_not_see_them(page: str) -> None:
    pictures = [each for tag, each in Page(page).elements if tag == "svg"]
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


def test_the_page_is_the_same_each_time(checkpoint: Path, page: str) -> None:
    assert render_page("calibrated", HEAD, reports_of(checkpoint)) == page


def test_names_are_escaped(checkpoint: Path) -> None:
    text = render_page("<script>alert(1)</script>", "A&B", [report("<b>.layer.0.q", 3.0)])
    assert "<script" not in text
    assert "A&amp;B" in text
    assert "<b>" not in text


def test_candidates_are_shown_if_ranges_were_compared(tmp_path: Path, page: str) -> None:
    assert "chosen</td>" not in page
    reports = reports_of(calibrated_checkpoint(tmp_path, "auto"))
    text = render_page("auto", HEAD, reports)
    activations = [each for each in reports if each.seen is not None and each.seen.errors]
    assert len(activations) == 28
    assert text.count("chosen</td>") == len(re.findall('<table class="candidates">', text)) > 0
    for each in activations:
        assert each.seen is not None
        assert float(each.amax) == min(each.seen.errors, key=lambda amax: (each.seen.errors[amax], amax))


def test_a_page_without_statistics_says_so() -> None:
    text = render_page("bare", HEAD, [report("encoder.layer.0.q", None)])
    assert "no calibration statistics" in text
    assert "<figure" not in text


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "deep" / "page.html"
    write_page(file, "first", HEAD, [report("q", 1.0)])
    write_page(file, "second", HEAD, [report("q", 1.0)])
    assert "second" in file.read_text()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ReportError, match=r"page\.html: No space left on device"):
        write_page(file, "third", HEAD, [report("q", 1.0)])
    assert "second" in file.read_text()
    assert [each.name for each in file.parent.iterdir()] == ["page.html"]


def test_places_that_no_page_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "page.html", Path("/dev/null"), tmp_path / ("x" * 300)):
        with pytest.raises(ReportError, match="Cannot write"):
            write_page(place, "title", HEAD, [report("q", 1.0)])
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r'pip install "qdqpatch\[report\]"'):
        render_page("title", HEAD, [])


@pytest.mark.slow
def test_figures_need_no_drawing_library() -> None:
    code = "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None; import qdqpatch.cli.inspect"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def chromium(file: Path, folder: Path) -> str:
    """Return the page as it is after loading; there must be no message on the console."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
    command = [CHROMIUM, *options, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def browse(page: str, tmp_path: Path) -> Callable[..., str]:
    """Load the page in headless Chromium with a script added, which posts its answer to the parent."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome on the PATH")

    def load(script: str, width: int) -> str:
        # The width of a headless window has a lower limit, so a frame gives the page its own.
        (tmp_path / "page.html").write_text(
            re.sub("<meta http-equiv[^>]*>", "", page).replace(
                "</body>", f"<script>{script}</script></body>"
            ),
            encoding="utf-8",
        )
        frame = f'<iframe src="page.html" style="width:{width}px;height:900px;border:0"></iframe>'
        (tmp_path / "frame.html").write_text(
            f"<!DOCTYPE html><title>no answer</title>{frame}"
            "<script>addEventListener('message', each => document.title = each.data)</script>",
            encoding="utf-8",
        )
        text = chromium(tmp_path / "frame.html", tmp_path)
        title = re.search("<title>(.*?)</title>", text)
        assert title is not None
        return title[1]

    return load


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(browse, width: int) -> None:
    script = (
        "const root = document.documentElement;"
        "const drawn = [...document.querySelectorAll('figure > svg')].filter("
        "  svg => svg.getBoundingClientRect().width > 250 && svg.querySelector('g').getBBox().width > 250);"
        "const lost = performance.getEntriesByType('resource').length;"
        "parent.postMessage([root.clientWidth, root.scrollWidth, drawn.length, lost].join(' '), '*');"
    )
    assert browse(script, width) == f"{width} {width} 32 0"


@pytest.mark.slow
def test_a_browser_has_no_complaint_about_the_page_as_it_is(browse, page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "poor.html").write_text(page.replace("</body>", "<img src=x.png></body>"), encoding="utf-8")
    assert chromium(tmp_path / "page.html", tmp_path).count("<figure ") == 32
    with pytest.raises(AssertionError, match="Content Security Policy"):  # nor could it load anything
        chromium(tmp_path / "poor.html", tmp_path)


@pytest.mark.slow
def test_a_browser_finds_the_pictures_that_links_and_thumbnails_point_to(browse) -> None:
    script = (
        "const links = [...document.querySelectorAll('.all a')];"
        "const good = links.filter(a => document.querySelector(a.hash + ' h3'));"
        "const small = [...document.querySelectorAll('use')].filter(use => use.getBBox().width > 250);"
        "links[0].focus();"
        "const focused = document.activeElement === links[0];"
        "parent.postMessage([links.length, good.length, small.length, focused].join(' '), '*');"
    )
    assert browse(script, 1280) == "40 40 40 true"
