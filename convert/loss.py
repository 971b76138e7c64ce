"""What storing costs: how far the weights as they are stored, and what is computed with them, are from the checkpoint's own.

Every difference is relative: of the root mean square of the error to that of what it is an error of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMITS = {"fp32": 0.0, "fp16": 3e-3, "bf16": 1.2e-2, "int8": 5e-2, "fp8_e4m3": 2e-1, "fp8_e5m2": 2.5e-1, "int4": 6e-1}
"""Precision -> the loss of a component's output that is expected of it, with its evidence in `validate/budgets.py`; of
a component that is not run, the loss of each tensor."""


@dataclass(frozen=True)
class TensorLoss:
    """Of one tensor: the sums of squares of its weights and of the errors, and its number of weights."""

    squares: float
    error_squares: float
    count: int

    @property
    def relative(self) -> float:
        """1 where nothing is left of it, 0 where nothing is lost."""
        return math.sqrt(self.error_squares / self.squares) if self.error_squares else 0.0


class Tally:
    """Adds up the losses of tensors that pass in pieces. What is stored exactly need not pass."""

    def __init__(self) -> None:
        self._sums: dict[str, TensorLoss] = {}

    def add(self, name: str, weights: NDArray[np.float32], stored: NDArray[np.float32]) -> None:
        """One piece of the tensor `name`, and the same as it reads back. Sums are in float64, whatever the threads."""
        before = self._sums.get(name, TensorLoss(0.0, 0.0, 0))
        self._sums[name] = TensorLoss(
            before.squares + _squares(weights), before.error_squares + _squares(weights - stored), before.count + weights.size
        )

    def losses(self) -> dict[str, TensorLoss]:
        """By tensor, of those that passed."""
        return dict(self._sums)


def overall(losses: Mapping[str, TensorLoss], weights: int) -> float:
    """The root mean square of the tensors' losses, each counted by its weights, of `weights` in all."""
    return math.sqrt(sum(loss.count * loss.relative**2 for loss in losses.values()) / weights)


def worst(losses: Mapping[str, TensorLoss]) -> str | None:
    """The tensor that loses most, None where nothing is lost."""
    name = max(losses, key=lambda name: losses[name].relative, default=None)
    return name if name is not None and losses[name].relative else None


def relative(output: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The loss of an output beside its reference; infinite where it is not finite, or the reference is nothing."""
    error = _squares(output.astype(np.float64) - reference)
    if not math.isfinite(error):
        return math.inf
    squares = _squares(reference)
    return math.sqrt(error / squares) if squares else (math.inf if error else 0.0)


def two_digits(loss: float) -> float:
    """As it is reported: further digits depend on the machine."""
    return float(f"{loss:.1e}")


def _squares(values: NDArray) -> float:
    return float(np.square(values, dtype=np.float64).sum())
