"""A verdict as one self-contained page: no network, no scripts; readable on a phone, in the dark and on paper."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from ..metrics import ssim
from ..ranges import FP16_MAX, SAFE_HEADROOM
from ..verdict import Verdict
from .chart import log_chart
from .layers import component_layers
from .summary import legible, limits, numbers, outcome, reason, rows, sentence, warnings

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class _Picture:
    """uri: the PNG itself.  similarity: SSIM against the first picture; None for that one, and where sizes differ."""

    name: str
    uri: str
    width: int
    height: int
    similarity: float | None


def to_html(verdict: Verdict) -> str:
    """The verdict, what did not pass, pictures, numbers, activation ranges per layer and the error per step."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": amount, "limits": limits, "numbers": numbers, "reason": reason}
    layers = (component_layers(component, ranges) for component, ranges in verdict.ranges.items())
    return environment.get_template("page.jinja").render(
        verdict=verdict,
        outcome=outcome(verdict),
        sentence=sentence(verdict),
        rows=list(rows(verdict)),
        failed=[comparison for comparison in verdict.comparisons if comparison.status != "passed"],
        warnings=list(warnings(verdict)),
        pictures=_pictures(verdict.pictures),
        components=list(filter(None, layers)),
        steps_chart=log_chart({"relative": [step.relative for step in verdict.steps]}, {}),
        fp16_max=FP16_MAX,
        safe_headroom=SAFE_HEADROOM,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        version=version("vaefix"),
    )


def amount(value: float) -> str:
    """A number with three digits that count: 288,000, 0.0123, 1.2e-05, inf."""
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.2g}"
    return f"{float(f'{value:.3g}'):,.7g}"


def _shown(value: Any) -> Any:
    """Text as it may be shown; autoescape makes it harmless afterwards."""
    return legible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _pictures(pictures: Mapping[str, NDArray]) -> list[_Picture]:
    result: list[_Picture] = []
    first = next(iter(pictures.values()), None)
    for name, pixels in pictures.items():
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", optimize=True)
        uri = f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
        similarity = None if pixels is first or first is None or pixels.shape != first.shape else _similarity(first, pixels)
        result.append(_Picture(name, uri, pixels.shape[1], pixels.shape[0], similarity))
    return result


def _similarity(reference: NDArray, actual: NDArray) -> float:
    return ssim(reference / np.float64(255), actual / np.float64(255))
