"""html.py: one page that needs nothing else, shows everything, and treats every name as text."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vaefix.validate.report import to_html
from vaefix.validate.report.html import amount
from vaefix.validate.report.summary import legible
from vaefix.validate.verdict import Verdict

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, and the text of each; every element must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return " ".join(text for _, text in self.texts)


@pytest.fixture(scope="module")
def page(full: Verdict) -> Page:
    return Page(to_html(full))


def test_the_verdict_is_the_heading(samples: Any) -> None:
    for comparison, word in ((samples.good, "Passed"), (samples.wrong, "Failed"), (samples.blocked, "Not compared")):
        shown = Page(to_html(samples.verdict(comparison)))
        assert [text for tag, text in shown.texts if tag == "h1"] == [word]
        assert next(text for tag, text in shown.texts if tag == "title").startswith(f"{word}: ")
    assert "Nothing was compared." in Page(to_html(samples.verdict())).text()


def test_the_page_loads_and_runs_nothing(page: Page) -> None:
    assert not [tag for tag, _ in page.elements if tag in {"script", "iframe", "object", "embed", "base", "form"}]
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    style = next(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_comparison_reason_and_limit_is_on_the_page(page: Page) -> None:
    for text in (
        "4 comparisons: 2 failed, 1 not compared, 1 passed.",
        "2 of 3 values are not finite",
        "the graph is unreadable; remedy: convert it again",
        "relative error up to 1.0e-03, PSNR from 60 dB",
        "measured",
    ):
        assert text in page.text()


def test_pictures_are_in_the_page_bit_for_bit_with_their_similarity(page: Page, full: Verdict) -> None:
    images = page.all("img")
    assert [image["alt"] for image in images] == [f"The picture of {name}" for name in full.pictures]
    for image, pixels in zip(images, full.pictures.values(), strict=True):
        png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)
    assert page.text().count("SSIM") == 2
    assert "SSIM 0.99" in page.text()


def test_pictures_of_different_sizes_are_shown_without_a_similarity(full: Verdict) -> None:
    pictures = {"reference": np.zeros((8, 8, 3), np.uint8), "artifact": np.zeros((16, 8, 3), np.uint8)}
    text = Page(to_html(replace(full, pictures=pictures))).text()
    assert "8 \N{MULTIPLICATION SIGN} 16" in text
    assert "SSIM" not in text


def test_ranges_show_the_limit_the_layers_and_where_it_goes_wrong(page: Page) -> None:
    assert "fp16 limit 65,504" in page.text()
    assert "Emulated: not finite from decoder.mid_block.resnets.0.conv2 on (2 of 3 layers)." in page.text()
    assert "288,000" in page.text()
    broken = [path["d"] for path in page.all("path") if path.get("class") == "broken"]
    assert [path.count("M") for path in broken] == [0, 0, 2, 0]


def test_the_error_per_step_has_a_chart_and_a_table(page: Page, full: Verdict) -> None:
    assert "All 4 steps" in page.text()
    assert all(f"{step.relative:.1e}" in page.text() for step in full.steps)


def test_a_verdict_of_comparisons_alone_has_no_empty_sections(samples: Any) -> None:
    headings = [text for tag, text in Page(to_html(samples.verdict(samples.good))).texts if tag == "h2"]
    assert headings == ["Comparisons", "Every number, and the limits"]


def test_tables_have_headers_and_regions_have_names(page: Page) -> None:
    assert all(attributes.get("scope") in {"col", "row"} for attributes in page.all("th"))
    assert page.text().count("Component") >= 1
    known = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(known) == len({*known})
    labels = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert {*labels} <= {*known}
    regions = [attributes for attributes in page.all("div") if attributes.get("role") == "region"]
    assert len(regions) == len(page.all("table"))
    assert all(region["tabindex"] == "0" for region in regions)


def test_hostile_names_are_text_wherever_they_stand(hostile: Verdict) -> None:
    html = to_html(hostile)
    html.encode()
    shown = Page(html)
    assert not shown.all("script")
    assert [image["alt"] for image in shown.all("img")] == [f"The picture of {legible(hostile.artifact)}"]
    assert not [name for _, attributes in shown.elements for name in attributes if name.startswith("on")]
    assert legible(hostile.artifact) in shown.text()
    assert "{{7*7}}" in shown.text()
    assert not set(html) & set("\x1b\x00\u202e\ud800\uffff")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (288_000.0, "288,000"), (0.01234, "0.0123"), (1.234e-5, "1.2e-05"), (3.4e9, "3.4e+09"), (float("inf"), "inf")],
)
def test_amounts_have_three_digits_that_count(value: float, text: str) -> None:
    assert amount(value) == text
