"""bench_validate.py: the ratios, and the limits that hold them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from bench_result import Limit
from bench_validate import DECODER, DEMO, Cost, Subject, Validation, limits, ratios, shown
from process_tree import Usage

from vaefix.convert.convert import ConvertOptions, convert

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")

GIB = 1 << 30


def cost(*, model: str = DECODER, emulated: float = 1.1, ranges: float = 1.2) -> Cost:
    return Cost(model, "openvino-gpu, vae_decoder, 512 px", 512, 1.0, emulated, ranges)


def validation(*, model: str = DECODER, wall: float = 50, gib: float = 3) -> Validation:
    return Validation(model, "openvino-gpu", Usage(0, wall, wall, int(gib * GIB), 0, int(gib * GIB), int(gib * GIB)))


def promised(*rows: Cost | Validation) -> list[Limit]:
    costs = [row for row in rows if isinstance(row, Cost)]
    return limits(costs, [row for row in rows if isinstance(row, Validation)])


def test_limits_are_kept_by_a_good_run() -> None:
    good = promised(cost(), validation(), validation(model=DEMO))
    assert len(good) == 4
    assert all(limit.kept for limit in good)


@pytest.mark.parametrize(
    "bad",
    [
        *(cost(emulated=1.31), cost(ranges=1.51), cost(emulated=math.nan), cost(ranges=math.nan)),
        *(validation(gib=6.1), validation(model=DEMO, wall=61)),
    ],
)
def test_a_bad_row_breaks_a_limit(bad: Cost | Validation) -> None:
    assert [limit.kept for limit in promised(bad)].count(False) == 1


def test_of_the_demo_models_ratios_nothing_is_promised() -> None:
    assert not promised(cost(model=DEMO, emulated=2, ranges=10))


def test_a_ratio_is_that_of_the_times() -> None:
    seconds, found = ratios([partial(time.sleep, 0.01), partial(time.sleep, 0.02), partial(time.sleep, 0.03)], 3)
    assert 0.01 <= seconds < 0.05
    assert 1.2 < found[0] < found[1] < 4


def test_the_first_run_and_one_that_was_disturbed_do_not_count() -> None:
    def slow_at(*calls: int) -> Callable[[], None]:
        durations: Iterator[float] = iter([0.1 if call in calls else 0.01 for call in range(6)])
        return lambda: time.sleep(next(durations))

    _, (ratio,) = ratios([slow_at(0, 3), slow_at(0, 5)], 5)
    assert 0.5 < ratio < 2


@pytest.fixture(scope="module")
def subject(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    output = tmp_path_factory.mktemp("artifact") / "text-encoder"
    options = ConvertOptions(output, demo_model, "onnx-cuda", components=("text_encoder",), cache=cache_folder)
    return Subject(DEMO, demo_model, convert(options))


def test_a_component_is_run_in_all_three_ways(subject: Subject) -> None:
    (found,) = subject.costs(64, 1)
    assert found.name == "onnx-cuda, text_encoder, 64 px"
    assert found.plain_seconds > 0
    assert found.emulated > 0
    assert found.ranges > 0
    assert [table.row_count for table in shown([found], [validation()])] == [1, 1]


def test_a_validation_that_fails_is_no_measurement(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 3"):
        replace(subject, folder=tmp_path / "no model").validation(tmp_path, 64)
