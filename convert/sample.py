"""What a component makes of one small input: with its weights as they are stored, beside what they are in the checkpoint.

One run serves three questions. What must the written graph compute (`verify.py`)? What does storing cost? And is there
reason to measure the component for a repair? It is run in PyTorch, with one weight in memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from .execute import execute, load, one_thread
from .loss import relative
from .precision import FLOAT16_MAX, is_exact
from .repair.plan import Range, WeightStatistics
from .repair.ranges import into, statistics
from .repair.small import is_too_small
from .rounding import rounded
from .targets import Job

SUSPECT = FLOAT16_MAX / 8
"""An activation that comes this far on one input may, on more of them, come near enough to overflow for a repair."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sample:
    """What the component was given, and its outputs by name, the weights rounded as they are stored.

    loss: of the output that storing costs most.
    ranges: operation name -> what it reached.  weights: statistics by parameter, of those that are not stored exactly.
    """

    feeds: Feeds
    outputs: Mapping[str, np.ndarray]
    loss: float
    ranges: Mapping[str, Range]
    weights: Mapping[str, WeightStatistics]


def take_sample(job: Job, feeds: Feeds) -> Sample:
    """Run the component with the job's storage and plan, and with the untouched weights if those are others."""
    exponents = job.plan.parameters
    exact = {name for name, tensor in job.tensors.items() if is_exact(tensor, exponents.get(name, 0), job.storage[name])}
    inputs = {name: torch.from_numpy(array) for name, array in feeds.items()}
    ranges: dict[str, Range] = {}
    weights: dict[str, WeightStatistics] = {}

    def measured(name: str) -> torch.Tensor:
        weight = load(job.tensors[name])
        if name not in exact and name not in weights:
            weights[name] = statistics(weight, job.storage[name])
        return weight

    def stored(name: str) -> torch.Tensor:
        if name in exact:
            return measured(name)
        return rounded(measured(name), job.storage[name], exponents.get(name, 0))

    lossless = len(exact) == len(job.tensors)
    with nullcontext() if lossless else one_thread():  # what is reported must not depend on the number of cores
        outputs = execute(job.program, stored, inputs, into(ranges))
        untouched = outputs if lossless else execute(job.program, lambda name: load(job.tensors[name]), inputs)
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    loss = max(relative(arrays[name], tensor.numpy()) for name, tensor in untouched.items())
    return Sample(feeds, arrays, loss, ranges, weights)


def is_suspect(job: Job, sample: Sample) -> bool:
    """Whether there is reason to measure the component for a repair."""
    activations = sample.ranges.values() if job.execution == "f16" else ()
    if any(reached.absmax > SUSPECT for reached in activations):
        return True
    if any(weight.absmax > FLOAT16_MAX for weight in sample.weights.values()):
        return True
    return is_too_small(job, sample.feeds, sample.ranges, sample.weights)
