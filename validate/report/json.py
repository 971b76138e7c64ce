"""A verdict as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ..verdict import Verdict

SCHEMA_VERSION = 1
"""Counted up when a field changes its meaning or goes; new fields may come at any time."""


def to_json(verdict: Verdict) -> str:
    """One JSON object: what was compared, every number, every limit and its evidence. NaN and inf are strings.

    The fields are those of `Verdict` without the pictures and the layers' sketches, `status` in every comparison,
    `passed`, `exit_code` and `schema_version`.
    """
    body = {"schema_version": SCHEMA_VERSION, "passed": verdict.passed, "exit_code": verdict.exit_code, **_plain(verdict)}
    del body["pictures"]
    for entry, comparison in zip(body["comparisons"], verdict.comparisons, strict=True):
        entry["status"] = comparison.status
    return json.dumps(body, indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    """The same in what JSON has: objects, lists, strings, finite numbers."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value) if field.name != "sketch"}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
