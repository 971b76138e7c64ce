"""chart.py: a logarithmic axis on which nothing leaves the picture and nothing that is not finite looks like a value."""

from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from vaefix.validate.report.chart import log_chart


def points(path: str) -> list[tuple[float, float]]:
    found = [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.e-]+) ([\d.e-]+)", path)]
    assert len(found) == len(re.findall("[ML]", path))
    return found


def test_a_decade_is_as_high_as_the_next() -> None:
    (series,) = log_chart({"run": [1.0, 10.0, 100.0, 1000.0]}, {}).series
    assert points(series.line) == [(12.5, 100.0), (37.5, 66.67), (62.5, 33.33), (87.5, 0.0)]


def test_a_value_at_the_limit_lies_on_its_line() -> None:
    chart = log_chart({"run": [3.0, 65504.0]}, {"limit": 65504.0})
    assert points(chart.series[0].line)[1][1] == chart.limits[0].y


def test_what_is_not_finite_is_in_the_band_and_ends_the_line() -> None:
    chart = log_chart({"run": [1.0, math.nan, math.inf, 2.0, 3.0]}, {})
    (series,) = chart.series
    assert series.line.count("M") == 2
    assert series.nonfinite.count("M") == 2
    assert series.dots.count("M") == 3
    assert all(y >= chart.band > 0 for _, y in points(series.line))


def test_a_finite_chart_has_no_band() -> None:
    assert log_chart({"run": [1.0, 2.0]}, {}).band == 0


def test_a_missing_place_is_passed_over() -> None:
    (series,) = log_chart({"run": [1.0, None, 10.0]}, {}).series
    assert (series.line.count("M"), series.line.count("L"), series.nonfinite) == (1, 1, "")


def test_zero_and_what_is_tiny_lie_on_the_lower_edge() -> None:
    (series,) = log_chart({"run": [0.0, 1e-300, 1.0]}, {}).series
    assert [y for _, y in points(series.line)] == [100.0, 100.0, 0.0]


def test_ticks_are_decades_in_words_people_read() -> None:
    assert [tick.label for tick in log_chart({"run": [0.002, 900_000.0]}, {}).ticks] == [
        "0.001",
        "0.1",
        "10",
        "1,000",
        "100,000",
    ]
    assert [tick.label for tick in log_chart({"run": [2e-6, 3e-5]}, {}).ticks] == ["1e-6", "1e-5", "1e-4"]


@given(st.lists(st.none() | st.floats(min_value=0), max_size=30), st.floats(min_value=1e-9, max_value=1e9))
def test_nothing_leaves_the_picture(values: list[float | None], limit: float) -> None:
    chart = log_chart({"run": values}, {"limit": limit})
    (series,) = chart.series
    for path in (series.line, series.dots):
        assert all(0 <= x <= 100 and chart.band <= y <= 100 for x, y in points(path.replace("h0", "")))
    assert all(0 <= mark.y <= 100 for mark in (*chart.ticks, *chart.limits))
    assert 2 <= len(chart.ticks) <= 7
    finite = sum(value is not None and math.isfinite(value) for value in values)
    assert series.dots.count("M") == finite
    assert series.nonfinite.count("M") + finite == sum(value is not None for value in values)
