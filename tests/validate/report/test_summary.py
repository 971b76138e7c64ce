"""summary.py, table.py: nothing that failed is hidden, and no name can forge what a terminal shows."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from vaefix.validate.budgets import Budget
from vaefix.validate.report import reasons, to_table
from vaefix.validate.report.summary import legible, limits, outcome, sentence
from vaefix.validate.verdict import Verdict


def text(result: Verdict) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(to_table(result))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("names", "exit_code", "word", "words"),
    [
        ("good", 0, "passed", "1 comparison: 1 passed."),
        ("good wrong", 1, "failed", "2 comparisons: 1 failed, 1 passed."),
        ("good blocked", 3, "not compared", "2 comparisons: 1 not compared, 1 passed."),
        ("good wrong blocked", 1, "failed", "3 comparisons: 1 failed, 1 not compared, 1 passed."),
        ("broken", 1, "failed", "1 comparison: 1 failed."),
        ("", 3, "not compared", "Nothing was compared."),
    ],
)
def test_only_a_full_pass_is_a_success(samples: Any, names: str, exit_code: int, word: str, words: str) -> None:
    result = samples.verdict(*(getattr(samples, name) for name in names.split()))
    assert (result.exit_code, result.passed) == (exit_code, exit_code == 0)
    assert (outcome(result), sentence(result)) == (word, words)


@pytest.mark.parametrize(
    ("names", "worst"),
    [("good wrong good", "wrong"), ("wrong broken", "broken"), ("broken wrong", "broken"), ("good good", "good")],
)
def test_a_row_shows_the_worst_of_its_outputs(samples: Any, names: str, worst: str) -> None:
    result = samples.verdict(*(getattr(samples, name) for name in names.split()))
    (row,) = (line for line in text(result).splitlines() if "unet" in line)
    assert f" {worst} " in row
    assert ("failed" in row) == (worst != "good")


def test_what_was_not_compared_has_a_row(samples: Any) -> None:
    (row,) = (line for line in text(samples.verdict(samples.good, samples.blocked)).splitlines() if "vae_decoder" in line)
    assert "not compared" in row


def test_reasons_name_everything_that_did_not_pass_in_a_line_each(samples: Any) -> None:
    lines = list(reasons(samples.verdict(samples.good, samples.wrong, samples.broken, samples.blocked)))
    assert [line.split(":")[0] for line in lines] == ["failed", "failed", "not compared"]
    assert "PSNR" in lines[0]
    assert "2 of 3 values are not finite" in lines[1]
    assert lines[2] == "not compared: vae_decoder emulated: the graph is unreadable; remedy: convert it again"


def test_markup_and_control_characters_reach_no_terminal(hostile: Verdict) -> None:
    for shown in (text(hostile), "".join(reasons(hostile))):
        assert "<script>" in shown, "the name itself is to be seen"
        assert not set(shown) & set("\x1b\x00\u202e\ud800\uffff")
        shown.encode()


def test_a_name_like_markup_of_the_terminal_is_shown_as_it_is(samples: Any) -> None:
    odd = replace(samples.good, component="[/red]unet")
    assert "[/red]unet" in text(samples.verdict(odd))


@pytest.mark.parametrize(
    ("given", "shown"),
    [("plain été 漢字", "plain été 漢字"), ("a\nb\r\n  c", "a; b; c"), ("\x1b[2J", "\ufffd[2J"), ("a\u202eb", "a\ufffdb")],
)
def test_legible_text_is_one_line_without_what_cannot_be_seen(given: str, shown: str) -> None:
    assert legible(given) == shown


def test_limits_say_what_a_budget_allows() -> None:
    assert limits(Budget("", max_abs=2e-5, relative=1e-5)) == "max abs up to 2.0e-05 of the peak, relative error up to 1.0e-05"
    assert limits(Budget("", psnr_db=60)) == "PSNR from 60 dB"
    assert limits(Budget("")) == "anything finite"
