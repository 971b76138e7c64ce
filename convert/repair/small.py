"""Whether a component is too small for float16 somewhere: weights stored in it, or activations computed in it.

Below 2**-14 float16 loses a bit with every power of two. Single weights are that small in every model, and layers that do
nothing may be so altogether; so it is the outputs that decide, on a small input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..execute import execute, load
from ..loss import relative
from ..program import Op
from ..rounding import SMALLEST_NORMAL, range_loss
from .plan import Range, WeightStatistics
from .rules import is_floating

if TYPE_CHECKING:
    from ..targets import Job

_TENSOR = 2.0**-17  # what a weight has to lose to be looked at; at an RMS of 2**-8 it is 2**-20, at 2**-11 2**-16
_ABSMAX = 2.0**-10  # the largest activation of an operation that is looked at: most of its values are subnormal
WEIGHT_EFFECT = 2.0**-19
"""On an output, of what weights lose. Half of what `vaefix-validate` allows for the order of summation in small models."""
ACTIVATION_EFFECT = 2.0**-10
"""On an output, of what activations lose. A healthy component computed in float16 is off by 2**-9."""


def is_too_small(
    job: Job,
    feeds: Mapping[str, np.ndarray],
    ranges: Mapping[str, Range],
    weights: Mapping[str, WeightStatistics],
) -> bool:
    """Whether an output suffers by more than the limits above.

    ranges: operation name -> what it reaches.  weights: statistics by parameter, of all that may lose something.
    """
    suspects = {name for name, found in weights.items() if found.lost > _TENSOR}
    computed = job.execution == "f16" and any(0 < reached.absmax < _ABSMAX for reached in ranges.values())
    if not (suspects or computed):
        return False
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}

    def untouched(name: str) -> torch.Tensor:
        return load(job.tensors[name])

    def stored(name: str) -> torch.Tensor:
        weight = untouched(name)
        return weight + range_loss(weight, job.storage[name]) if name in suspects else weight

    expected = execute(job.program, untouched, inputs)
    if suspects and _effect(execute(job.program, stored, inputs), expected) > WEIGHT_EFFECT:
        return True
    return computed and _effect(execute(job.program, stored, inputs, _narrowed), expected) > ACTIVATION_EFFECT


def _narrowed(op: Op, output: torch.Tensor) -> torch.Tensor | None:
    """The output with its small values as float16 has them; large ones keep all their digits."""
    if not is_floating(op.dtype):
        return None
    return torch.where(output.abs() < SMALLEST_NORMAL, output.half().to(output.dtype), output)


def _effect(outputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    return max(relative(outputs[name].numpy(), output.numpy()) for name, output in expected.items())
