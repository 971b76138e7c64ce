"""Where the lines of a chart with a logarithmic axis run; what they look like is the page's affair."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_BAND = 14.0  # percent of the height, on top: values that are not finite
_DECADES = 12  # at most: what is smaller lies on the lower edge
_TICKS = 7  # at most


@dataclass(frozen=True)
class Mark:
    """A horizontal line across the chart. y: percent of the height from the top."""

    label: str
    y: float


@dataclass(frozen=True)
class Series:
    """One run, as SVG path data in a square of 100 by 100, from the top left.

    line: through the finite values, interrupted where there is none.  dots: a path of no length at each of them.
    nonfinite: a stroke in the band on top for each value that is not finite.
    """

    name: str
    line: str
    dots: str
    nonfinite: str


@dataclass(frozen=True)
class Chart:
    """Values over their places, on a logarithmic axis. band: percent of the height, 0 where every value is finite."""

    series: tuple[Series, ...]
    ticks: tuple[Mark, ...]
    limits: tuple[Mark, ...]
    band: float


@dataclass(frozen=True)
class _Scale:
    """From the decade `bottom` to the decade `top`, below a band of `band` percent."""

    bottom: int
    top: int
    band: float

    def y(self, value: float) -> float:
        """Zero, which has no logarithm, lies on the lower edge, as does everything below it."""
        return self.y_of_decade(max(math.log10(value), self.bottom) if value > 0 else self.bottom)

    def y_of_decade(self, decade: float) -> float:
        return round(self.band + (100 - self.band) * (self.top - decade) / (self.top - self.bottom), 2)


def log_chart(values: Mapping[str, Sequence[float | None]], limits: Mapping[str, float]) -> Chart:
    """A chart of runs of equal length.

    values: run -> one number >= 0 for each place; NaN or inf where it is not finite, None where there is none.
    limits: label -> where a line is drawn across.
    """
    known = [value for run in values.values() for value in run if value is not None]
    finite = [value for value in known if math.isfinite(value)]
    scale = _scale([*filter(None, finite), *limits.values()], _BAND if len(finite) < len(known) else 0.0)
    step = max(1, math.ceil((scale.top - scale.bottom + 1) / _TICKS))
    return Chart(
        series=tuple(_series(name, run, scale) for name, run in values.items()),
        ticks=tuple(Mark(_power(decade), scale.y_of_decade(decade)) for decade in range(scale.bottom, scale.top + 1, step)),
        limits=tuple(Mark(label, scale.y(value)) for label, value in limits.items()),
        band=scale.band,
    )


def _scale(values: Sequence[float], band: float) -> _Scale:
    decades = [math.log10(value) for value in values] or [0.0]
    top = math.ceil(max(decades))
    return _Scale(min(top - 1, max(top - _DECADES, math.floor(min(decades)))), top, band)


def _series(name: str, values: Sequence[float | None], scale: _Scale) -> Series:
    points = [(round(100 * (place + 0.5) / len(values), 2), value) for place, value in enumerate(values)]
    drawn = [(x, scale.y(value)) for x, value in points if value is not None and math.isfinite(value)]
    return Series(
        name=name,
        line=" ".join(_segments(points, scale)),
        dots=" ".join(f"M{x} {y}h0" for x, y in drawn),
        nonfinite=" ".join(f"M{x} 2V{_BAND - 4}" for x, value in points if value is not None and not math.isfinite(value)),
    )


def _segments(points: Sequence[tuple[float, float | None]], scale: _Scale) -> Iterator[str]:
    """A missing value is passed over; one that is not finite ends the line."""
    command = "M"
    for x, value in points:
        if value is None:
            continue
        if math.isfinite(value):
            yield f"{command}{x} {scale.y(value)}"
            command = "L"
        else:
            command = "M"


def _power(decade: int) -> str:
    return f"{10.0**decade:,.10g}" if -3 <= decade <= 6 else f"1e{decade}"
