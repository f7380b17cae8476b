"""The page in headless Chromium."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
            "<script>addEventListener('message', event => document.title = event.data)</script>",
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
