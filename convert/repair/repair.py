"""Measure, solve, prove: the whole repair of one component, with one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..checkpoint import TensorRef
from ..families import Component
from ..precision import decode
from ..program import Program
from .identity import check_identity
from .plan import ScalePlan
from .ranges import activation_ranges, weight_statistics
from .solve import solve

SEEDS = 4
CALIBRATION_SIDE = 12  # of the latent: pictures of 96 x 96; the limit leaves a factor of 16
IDENTITY_SIDE = 8

SampleInputs = Callable[[Component, int, int], Mapping[str, np.ndarray]]


def find_plan(
    component: Component, program: Program, tensors: Mapping[str, TensorRef], sample_inputs: SampleInputs
) -> ScalePlan:
    """The plan that brings the component into the range of fp16, proven bit-identical in float32; empty if none is due.

    tensors: by parameter name.  sample_inputs: the family's.
    Raises InputError if the component is not finite in float32, ParityError if the repaired one is another function.
    """

    def weights(name: str) -> torch.Tensor:
        return torch.from_numpy(decode(tensors[name]))

    def inputs(seed: int, side: int) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in sample_inputs(component, seed, side).items()}

    ranges = activation_ranges(program, weights, (inputs(seed, CALIBRATION_SIDE) for seed in range(SEEDS)))
    plan = solve(program, ranges, weight_statistics(program, weights))
    if not plan.is_empty:
        check_identity(program, plan, weights, inputs(SEEDS, IDENTITY_SIDE))
    return plan
