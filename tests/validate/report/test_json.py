"""json.py: the JSON is JSON, and it holds everything."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np

from vaefix.validate.report import to_json
from vaefix.validate.verdict import Verdict


def parsed(verdict: Verdict) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(to_json(verdict), parse_constant=refuse)


def test_json_holds_every_comparison_and_no_number_that_json_does_not_have(full: Verdict) -> None:
    body = parsed(full)
    assert [entry["status"] for entry in body["comparisons"]] == ["passed", "failed", "failed", "not compared"]
    good, _, broken, blocked = body["comparisons"]
    assert good["difference"]["psnr_db"] == "inf"
    assert good["budget"] == {"evidence": "measured", "max_abs": None, "relative": 1e-3, "psnr_db": 60, "ssim": None}
    assert broken["difference"]["max_abs"] == "nan"
    assert broken["difference"]["nonfinite_actual"] == 2
    assert blocked["difference"] is None
    assert blocked["obstacle"].startswith("the graph is unreadable")
    assert (body["schema_version"], body["passed"], body["exit_code"], body["seeds"]) == (1, False, 1, [0, 1])


def test_json_has_every_field_of_the_verdict_but_the_pictures(full: Verdict) -> None:
    body = parsed(full)
    assert body.keys() == {field.name for field in fields(Verdict)} - {"pictures"} | {"schema_version", "passed", "exit_code"}
    assert body["ranges"]["vae_decoder"]["emulated"][1] == {
        "layer": "decoder.mid_block.resnets.0.conv2",
        "count": 4096,
        "nonfinite": 7,
        "absmax": "inf",
        "subnormal": 0.125,
    }
    assert [step["max_abs"] for step in body["steps"]] == [step.max_abs for step in full.steps]


def test_numbers_of_numpy_are_numbers(full: Verdict) -> None:
    step = replace(full.steps[0], count=np.int64(3), rms=np.float32(0.5), psnr_db=np.float32(math.nan))  # type: ignore[arg-type]
    (found,) = parsed(replace(full, steps=(step,)))["steps"]
    assert (found["count"], found["rms"], found["psnr_db"]) == (3, 0.5, "nan")


def test_hostile_names_come_back_as_they_were(hostile: Verdict) -> None:
    body = parsed(hostile)
    assert body["artifact"] == hostile.artifact
    assert list(body["ranges"]) == [hostile.artifact]
