"""Tests of fairseq_lnplugin/study/web_page.py: RESULTS.html, which is RESULTS.md with its figures inside."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from run_folders import PRE_SETTINGS, write_run

from fairseq_lnplugin import cli
from fairseq_lnplugin.study.plots import COLORS
from fairseq_lnplugin.study.web_page import web_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIGURE = "[![Loss](figures/loss.png)](figures/loss.svg)"


class Reader(HTMLParser):
    """Tags with their attributes, the text of cells, and whether every tag that was opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a report of two runs."""
    folder = tmp_path_factory.mktemp("study")
    write_run(folder, note="a < b & c | d")
    write_run(folder, **PRE_SETTINGS)
    assert cli.main(["report", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(report):
    """RESULTS.html."""
    return (report / "RESULTS.html").read_text(encoding="utf-8")


def test_every_tag_is_closed(page):
    """A page that a browser need not mend."""
    assert Reader(page).open == []


def test_nothing_is_loaded_from_outside(page):
    """No script, no link, no address but data: ones, and a policy that forbids the rest."""
    tags = Reader(page).tags
    assert not {"script", "link", "iframe", "object", "a"} & {tag for tag, _ in tags}
    addresses = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "srcset")]
    assert addresses and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "url(" not in page and "@import" not in page


def test_the_figures_are_the_reports_svg_files(report, page):
    """Byte for byte, each with its caption for those who cannot see it."""
    images = [attributes for tag, attributes in Reader(page).tags if tag == "img"]
    inside = [base64.b64decode(image["src"].partition("base64,")[2]) for image in images]
    assert sorted(inside) == sorted(path.read_bytes() for path in (report / "figures").glob("*.svg"))
    assert all(image["alt"] for image in images)


def test_the_svg_files_load_nothing_either(report):
    """Their text is drawn as outlines, so no font is needed; links lead to parts of themselves."""
    for path in (report / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert all(link.startswith("#") for link in re.findall(r'xlink:href="([^"]*)"', text)) and "<text" not in text


def test_the_page_says_what_the_markdown_says(report, page):
    """The same words in the same order, markup aside."""
    markdown = (report / "RESULTS.md").read_text(encoding="utf-8")
    markdown = re.sub(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)", " ", markdown)
    body = page[page.index("<body>") : page.index("</html>")]
    words = [re.findall(r"\w+", text) for text in (re.sub(r"-{3,}:?", " ", markdown), "".join(Reader(body).texts))]
    assert words[0] == words[1]


def test_text_of_a_run_is_text_in_the_page(page):
    """What looks like markup in a note is not."""
    assert "a &lt; b &amp; c | d" in page


def test_a_wide_table_scrolls_in_itself(page):
    """On a phone the page stays as wide as the screen."""
    assert page.count('<div class="table"><table>') == page.count("<table") > 2
    assert 'name="viewport" content="width=device-width' in page


def test_a_figure_without_a_link_is_not_taken_in():
    """Only what the report itself writes is replaced, by the SVG of its name."""
    page = web_page(f"# Title\n\n{FIGURE}\n\n`{FIGURE}`\n", {"figures/loss.svg": b"<svg/>"})
    assert page.count("data:image/svg+xml;base64,PHN2Zy8+") == 1 and "<title>Title</title>" in page


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_without_a_network_paints_the_figures(report, tmp_path):
    """A real one, headless: the second run's curve is blue, and nothing else on the page is."""
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1000,8000"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}"]
    subprocess.run([BROWSER, *flags, f"file://{report / 'RESULTS.html'}"], check=True, capture_output=True, timeout=120)
    pixels = imread(picture)[..., :3]
    blue = abs(pixels - to_rgb(COLORS[1])).max(axis=2) < 0.02
    assert blue.sum() > 200
