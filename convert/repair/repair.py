"""Measure, solve, prove: the whole repair of one component, with one weight in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..execute import load, one_thread
from ..families import Component
from ..precision import FLOAT16_MAX
from .identity import check_identity
from .plan import ScalePlan
from .ranges import activation_ranges, weight_statistics
from .small import is_too_small
from .solve import HEADROOM, solve

if TYPE_CHECKING:
    from ..targets import Job

SEEDS = 4
CALIBRATION_SIDE = 10  # of the latent: pictures of 80 x 80; the limit leaves a factor of 16
IDENTITY_SIDE = 6

SampleInputs = Callable[[Component, int, int], Mapping[str, np.ndarray]]


def find_plan(job: Job, sample_inputs: SampleInputs, own_inputs: Iterable[Mapping[str, np.ndarray]] = ()) -> ScalePlan:
    """The plan that brings the component into the range of fp16, proven bit-identical in float32; empty if none is due.

    Weights are brought into it as the job stores them, activations only if it executes in f16 or is `examined` in any case.
    sample_inputs: the family's.  own_inputs: the user's, measured too.
    Raises InputError if the component is not finite in float32, ParityError if the repaired one is another function.
    """

    def weights(name: str) -> torch.Tensor:
        return load(job.tensors[name])

    def tensors_of(feed: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in feed.items()}

    feeds = [*(sample_inputs(job.component, seed, CALIBRATION_SIDE) for seed in range(SEEDS)), *own_inputs]
    identity_feed = sample_inputs(job.component, SEEDS, IDENTITY_SIDE)
    limit = FLOAT16_MAX / HEADROOM if job.execution == "f16" or job.examined else math.inf
    with one_thread():
        ranges = activation_ranges(job.program, weights, map(tensors_of, feeds))
        statistics = weight_statistics(job.program, weights, job.storage)
        too_small = is_too_small(job, identity_feed, ranges, statistics)
        plan = solve(job.program, ranges, statistics, limit, too_small=too_small)
        if not plan.is_empty:
            check_identity(job.program, plan, weights, tensors_of(identity_feed))
    return plan
