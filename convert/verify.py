"""The last stage of a conversion: what was written is read back, and executed beside the PyTorch program.

The reference runs the captured program with the checkpoint's own weights, rounded to the stored precision by torch,
one weight in memory at a time. `vaefix-validate` compares with the untouched model; this catches a broken artifact
before it gets its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vaefix.runtime.errors import ParityError

from .families import Component
from .targets import Job, Target

LIMIT = 1e-4  # largest difference, relative to the largest magnitude of the output; SDXL's own size stays below 1e-5
LARGE = 10**9  # a component of more weights than this is executed with full=True only: it would take minutes
_SIDE = 8  # of the latent


def verify(target: Target, job: Job, folder: Path, inputs: Any, full: bool) -> dict[str, Any]:
    """Check one written component; returns what was compared, for the manifest.

    inputs: the family's `sample_inputs`.  full: execute the component whatever its size.
    Raises ParityError naming the component and the output that differs.
    """
    target.engine.check(folder, job)
    weights = sum(tensor.count for tensor in job.tensors.values())
    if weights > LARGE and not full:
        return {"structure": "equal", "outputs": f"not compared: {weights / 1e9:.1f} G weights; --verify full takes minutes"}
    feeds = inputs(job.component, 0, _SIDE)
    reference = _reference(job, feeds)
    outputs = target.engine.run(folder, job, feeds)
    for name in job.component.outputs:
        _compare(job.component, name, reference[name], outputs[name])
    # Not the measured difference: its last digits depend on the number of threads, and an artifact must not.
    return {"structure": "equal", "outputs": "equal", "relative_max_abs_limit": LIMIT}


def _reference(job: Job, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    from .execute import execute, load
    from .rounding import rounded

    def weight(name: str) -> torch.Tensor:
        return rounded(load(job.tensors[name]), job.storage[name], job.plan.parameters.get(name, 0))

    outputs = execute(job.program, weight, {name: torch.from_numpy(array) for name, array in feeds.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _compare(component: Component, name: str, reference: np.ndarray, output: np.ndarray) -> None:
    """Raise ParityError unless all is finite and the largest difference is within LIMIT of the largest magnitude."""
    source = f"{component.name}, output {name}"
    if reference.shape != output.shape or reference.size == 0:
        raise ParityError(f"shape {output.shape}, PyTorch gives {reference.shape}", source=source)
    nonfinite = int(np.count_nonzero(~np.isfinite(output))), int(np.count_nonzero(~np.isfinite(reference)))
    if any(nonfinite):
        raise ParityError(f"{nonfinite[0]} values are not finite ({nonfinite[1]} in PyTorch)", source=source)
    scale = float(np.abs(reference).max()) or 1.0
    worst = float(np.abs(output.astype(np.float64) - reference).max()) / scale
    if not worst <= LIMIT:
        raise ParityError(f"differs from PyTorch by {worst:.2e} of its largest magnitude, allowed {LIMIT:.0e}", source=source)
