"""The page in a real browser: it fits a phone, can be read in light and dark, and is reached with the keyboard alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from vaefix.validate.report import to_html
from vaefix.validate.verdict import Verdict

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="there is no Chromium")

SCHEMES = {"dark": "0", "light": "1"}  # as Blink numbers them
# Looks at the page from outside, since its own policy lets no script run: in a frame as wide as the screen would be.
INSPECT = """
const frame = document.querySelector("iframe"), page = frame.contentDocument, view = frame.contentWindow;
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = colour => { const [r, g, b] = numbers(colour).slice(0, 3).map(part => {
  const value = part / 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = element => { for (; element; element = element.parentElement) {
  const colour = view.getComputedStyle(element).backgroundColor, alpha = numbers(colour)[3];
  if (alpha === undefined || alpha === 1) return colour; } return "rgb(255, 255, 255)"; };
const contrast = element => { const style = view.getComputedStyle(element);
  const [high, low] = [element instanceof view.SVGElement ? style.fill : style.color, behind(element)]
    .map(luminance).sort((a, b) => b - a); return (high + 0.05) / (low + 0.05); };
page.querySelectorAll("details").forEach(details => { details.open = true; });
const written = [...page.querySelectorAll("body *")].filter(element =>
  element.tagName !== "title" && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
const wanted = [...page.querySelectorAll("summary, .scroll")];
document.querySelector("pre").textContent = JSON.stringify({
  width: page.documentElement.scrollWidth,
  background: view.getComputedStyle(page.body).backgroundColor,
  faint: written.filter(element => contrast(element) < 4.5).map(element => element.outerHTML.slice(0, 80)),
  texts: written.length,
  reached: wanted.filter(element => { element.focus(); return page.activeElement === element; }).length,
  wanted: wanted.length,
});
"""


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[..., tuple[Any, list[str]]]:
    """inspect(html, width, scheme): what the page looks like there, and the lines on the console."""

    def run(html: str, width: int, scheme: str) -> tuple[Any, list[str]]:
        outside = tmp_path / "outside.html"
        frame = f'<iframe srcdoc="{escape(html)}" style="width:{width}px;height:800px;border:0"></iframe>'
        script = f"<script>document.querySelector('iframe').onload = () => {{ {INSPECT} }};</script>"
        outside.write_text(
            f"<!DOCTYPE html><meta charset=utf-8><body style=margin:0>{frame}<pre></pre>{script}", encoding="utf-8"
        )
        command = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}", "--enable-logging=stderr"),
            *(f"--window-size={max(width, 500)},900", "--timeout=20000", "--dump-dom", outside.as_uri()),
        ]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        dump = re.search(r"<pre>(.*?)</pre>", result.stdout, re.DOTALL)
        assert dump, result.stdout[-500:]
        return json.loads(unescape(dump[1])), [line for line in result.stderr.splitlines() if "CONSOLE" in line]

    return run


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", ["full", "hostile"])
def test_the_page_fits_is_legible_and_is_reached_with_the_keyboard(
    request: pytest.FixtureRequest, inspect: Callable[..., tuple[Any, list[str]]], name: str, width: int, scheme: str
) -> None:
    verdict: Verdict = request.getfixturevalue(name)
    seen, console = inspect(to_html(verdict), width, scheme)
    assert console == []
    assert 0 < seen["width"] <= width
    assert seen["background"] == {"light": "rgb(246, 247, 249)", "dark": "rgb(15, 18, 23)"}[scheme]
    assert seen["faint"] == []
    assert seen["texts"] > 50
    assert seen["reached"] == seen["wanted"] > 3


def test_a_page_that_is_too_wide_too_faint_and_out_of_reach_is_found_out(
    inspect: Callable[..., tuple[Any, list[str]]],
) -> None:
    html = (
        "<!DOCTYPE html><meta charset=utf-8><body><div style='width:500px'>wide</div><p style='color:#aaa'>faint</p>"
        "<div class=scroll>not reached</div><script>undefined.name</script>"
    )
    seen, console = inspect(html, 360, "light")
    assert seen["width"] > 360
    assert len(seen["faint"]) == 1
    assert (seen["reached"], seen["wanted"]) == (0, 1)
    assert console
