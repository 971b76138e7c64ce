"""report.py: nothing that failed is hidden, and the JSON is JSON."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from vaefix.validate.budgets import Budget
from vaefix.validate.metrics import compare
from vaefix.validate.report import reasons, to_json, to_table
from vaefix.validate.verdict import Comparison, Verdict

BUDGET = Budget(evidence="measured", relative=1e-3, psnr_db=60)
REFERENCE = np.array([0.0, 1.0, 2.0])


def judged(output: str, actual: list[float]) -> Comparison:
    difference = compare(REFERENCE, np.array(actual))
    return Comparison("unet", "parity", output, difference, BUDGET, BUDGET.failures(difference))


GOOD = judged("good", [0.0, 1.0, 2.0])
WRONG = judged("wrong", [0.0, 1.0, 3.0])
BROKEN = judged("broken", [0.0, math.nan, math.inf])
BLOCKED = Comparison("vae_decoder", "emulated", obstacle="the graph is unreadable")


def verdict(*comparisons: Comparison) -> Verdict:
    return Verdict("artifact", "model", "openvino-gpu", (0, 1), comparisons)


def text(result: Verdict) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(to_table(result))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("comparisons", "exit_code"),
    [
        ((GOOD,), 0),
        ((GOOD, WRONG), 1),
        ((GOOD, BLOCKED), 3),
        ((GOOD, WRONG, BLOCKED), 1),
        ((BROKEN,), 1),
        ((), 3),
    ],
)
def test_only_a_full_pass_is_a_success(comparisons: tuple[Comparison, ...], exit_code: int) -> None:
    result = verdict(*comparisons)
    assert result.exit_code == exit_code
    assert result.passed == (exit_code == 0)


def test_json_holds_every_comparison_and_no_number_that_json_does_not_have() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    body = json.loads(to_json(verdict(GOOD, WRONG, BROKEN, BLOCKED)), parse_constant=refuse)
    assert [entry["status"] for entry in body["comparisons"]] == ["passed", "failed", "failed", "not compared"]
    good, _, broken, blocked = body["comparisons"]
    assert good["difference"]["psnr_db"] == "inf"
    assert good["budget"] == {"evidence": "measured", "max_abs": None, "relative": 1e-3, "psnr_db": 60}
    assert broken["difference"]["max_abs"] == "nan"
    assert broken["difference"]["nonfinite_actual"] == 2
    assert blocked["difference"] is None
    assert blocked["obstacle"] == "the graph is unreadable"
    assert (body["passed"], body["exit_code"], body["seeds"]) == (False, 1, [0, 1])


@pytest.mark.parametrize(
    ("comparisons", "worst"),
    [((GOOD, WRONG, GOOD), "wrong"), ((WRONG, BROKEN), "broken"), ((BROKEN, WRONG), "broken"), ((GOOD, GOOD), "good")],
)
def test_a_row_shows_the_worst_of_its_outputs(comparisons: tuple[Comparison, ...], worst: str) -> None:
    (row,) = (line for line in text(verdict(*comparisons)).splitlines() if "unet" in line)
    assert f" {worst} " in row
    assert ("failed" in row) == (worst != "good")


def test_what_was_not_compared_has_a_row() -> None:
    (row,) = (line for line in text(verdict(GOOD, BLOCKED)).splitlines() if "vae_decoder" in line)
    assert "not compared" in row


def test_reasons_name_everything_that_did_not_pass() -> None:
    lines = list(reasons(verdict(GOOD, WRONG, BROKEN, BLOCKED)))
    assert [line.split(":")[0] for line in lines] == ["failed", "failed", "not compared"]
    assert "PSNR" in lines[0]
    assert "2 of 3 values are not finite" in lines[1]
    assert "unreadable" in lines[2]
