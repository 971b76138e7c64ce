"""Verdicts to report: of every outcome, with everything in it, and with names made to break a page."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vaefix.validate.budgets import Budget
from vaefix.validate.metrics import compare
from vaefix.validate.ranges import LayerRange
from vaefix.validate.verdict import Comparison, Verdict

BUDGET = Budget(evidence="measured", relative=1e-3, psnr_db=60)
REFERENCE = np.array([0.0, 1.0, 2.0])


def judged(output: str, actual: list[float]) -> Comparison:
    difference = compare(REFERENCE, np.array(actual))
    return Comparison("unet", "parity", output, difference, BUDGET, BUDGET.failures(difference))


class Samples:
    """One comparison of each outcome, and verdicts made of them."""

    good = judged("good", [0.0, 1.0, 2.0])
    wrong = judged("wrong", [0.0, 1.0, 3.0])
    broken = judged("broken", [0.0, math.nan, math.inf])
    blocked = Comparison("vae_decoder", "emulated", obstacle="the graph is unreadable\n  remedy: convert it again")

    def verdict(self, *comparisons: Comparison) -> Verdict:
        return Verdict("artifact", "model", "openvino-gpu", (0, 1), comparisons)


@pytest.fixture(scope="session")
def samples() -> Samples:
    return Samples()


def layer(name: str, absmax: float, nonfinite: int = 0) -> LayerRange:
    return LayerRange(name, 4096, nonfinite, math.inf if nonfinite else absmax, 0.125, (0.5, -0.25))


@pytest.fixture(scope="session")
def full(samples: Samples) -> Verdict:
    """A decoder whose stream leaves fp16 at its second layer, three pictures and four steps."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    stream = ("decoder.conv_in", 900.0), ("decoder.mid_block.resnets.0.conv2", 288_000.0), ("decoder.conv_out", 2.5)
    ranges = {
        "reference": tuple(layer(name, absmax) for name, absmax in stream),
        "artifact": tuple(layer(name, absmax / 64) for name, absmax in stream),
        "emulated": (layer("decoder.conv_in", 900), layer(stream[1][0], 0, 7), layer("decoder.conv_out", 0, 4096)),
    }
    return Verdict(
        artifact="artifact",
        reference="model",
        target="openvino-gpu",
        seeds=(0, 1),
        comparisons=(samples.good, samples.wrong, samples.broken, samples.blocked),
        ranges={"vae_decoder": ranges},
        steps=tuple(compare(REFERENCE, REFERENCE + 1e-6 * 2**step) for step in range(4)),
        pictures={"PyTorch fp32": pixels, "artifact": pixels ^ 1, "emulated": np.zeros_like(pixels)},
    )


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'|`*x*_y_]](http://x)\\|@you {{7*7}}"
    "\x1b[31m\x00\u202e\ud800\uffff\nz"
)


@pytest.fixture(scope="session")
def hostile() -> Verdict:
    """Every text that may come from an artifact is markup for everything."""
    blocked = Comparison(HOSTILE, "parity", HOSTILE, obstacle=HOSTILE)
    difference = compare(REFERENCE, REFERENCE + 1)
    failed = Comparison(HOSTILE, "emulated", HOSTILE, difference, BUDGET, (HOSTILE,))
    return Verdict(
        artifact=HOSTILE,
        reference=HOSTILE,
        target=HOSTILE,
        seeds=(0,),
        comparisons=(blocked, failed),
        ranges={HOSTILE: {"reference": (layer(HOSTILE, 1.0),), "emulated": (layer(HOSTILE, 0.0, 3),)}},
        pictures={HOSTILE: np.zeros((8, 8, 3), np.uint8)},
    )
