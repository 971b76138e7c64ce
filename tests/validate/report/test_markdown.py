"""markdown.py: read as GitHub reads it, the comment says what the verdict says and nothing that a name makes up."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
from markdown_it import MarkdownIt

from vaefix.validate.report import to_markdown
from vaefix.validate.report.summary import legible
from vaefix.validate.verdict import Verdict

TAGS = {"h3", "p", "code", "table", "thead", "tbody", "tr", "th", "td", "pre"}


def rendered(verdict: Verdict) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(to_markdown(verdict))


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?>(.*?)</td>", row)] for row in rows][1:]


@pytest.mark.parametrize(
    ("names", "word"), [("good", "passed"), ("good wrong", "failed"), ("blocked", "not compared"), ("", "not")]
)
def test_the_verdict_comes_first(samples: Any, names: str, word: str) -> None:
    first = to_markdown(samples.verdict(*(getattr(samples, name) for name in names.split()))).splitlines()[0]
    assert first.startswith("### ")
    assert f"vaefix-validate: {word}" in first


def test_the_table_has_a_row_for_each_component_and_kind(full: Verdict) -> None:
    html = rendered(full)
    assert cells(html) == [
        ["unet", "parity", "❌ failed", "broken", "nan", "nan", "nan"],
        ["vae_decoder", "emulated", "⚠️ not compared", "", "", "", ""],
    ]
    assert "2 of 3 values are not finite" in html


def test_a_pass_has_no_reasons(samples: Any) -> None:
    assert "```" not in to_markdown(samples.verdict(samples.good))


def test_hostile_names_stay_in_their_cells_and_make_no_element(hostile: Verdict) -> None:
    html = rendered(hostile)
    name = legible(hostile.artifact)
    assert [(row[0], row[3]) for row in cells(html)] == [(name, name)] * 2
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= TAGS
    assert unescape(html).count("<script>") == unescape(html).count(name[:8])


def test_a_fence_in_a_reason_does_not_end_the_block(samples: Any) -> None:
    blocked = replace(samples.blocked, obstacle="````\n<b>bold</b>\n````")
    html = rendered(samples.verdict(blocked))
    assert "<b>" not in html
    assert "&lt;b&gt;bold" in html


def test_many_reasons_are_cut_and_counted(samples: Any) -> None:
    text = to_markdown(samples.verdict(*[samples.wrong] * 500))
    assert "500 comparisons: 500 failed" in text
    assert "... and 460 more" in text
    assert len(text) < 65_536
