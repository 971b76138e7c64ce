"""Measure, solve, prove: the whole repair of one component, with one weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from ..checkpoint import TensorRef
from ..execute import load
from ..families import Component
from ..program import Program
from .identity import check_identity
from .plan import ScalePlan
from .ranges import activation_ranges, weight_statistics
from .solve import solve

SEEDS = 4
CALIBRATION_SIDE = 10  # of the latent: pictures of 80 x 80; the limit leaves a factor of 16
IDENTITY_SIDE = 6

SampleInputs = Callable[[Component, int, int], Mapping[str, np.ndarray]]


def find_plan(
    component: Component,
    program: Program,
    tensors: Mapping[str, TensorRef],
    sample_inputs: SampleInputs,
    own_inputs: Iterable[Mapping[str, np.ndarray]] = (),
) -> ScalePlan:
    """The plan that brings the component into the range of fp16, proven bit-identical in float32; empty if none is due.

    tensors: by parameter name.  sample_inputs: the family's.  own_inputs: the user's, measured too.
    Raises InputError if the component is not finite in float32, ParityError if the repaired one is another function.
    """

    def weights(name: str) -> torch.Tensor:
        return load(tensors[name])

    def tensors_of(feed: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(array) for name, array in feed.items()}

    feeds = [*(sample_inputs(component, seed, CALIBRATION_SIDE) for seed in range(SEEDS)), *own_inputs]
    with _one_thread():
        ranges = activation_ranges(program, weights, map(tensors_of, feeds))
        plan = solve(program, ranges, weight_statistics(program, weights))
        if not plan.is_empty:
            check_identity(program, plan, weights, tensors_of(sample_inputs(component, SEEDS, IDENTITY_SIDE)))
    return plan


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums split over threads round differently: with one, the measured ranges do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
