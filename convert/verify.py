"""The last stage of a conversion: what was written is read back, and compared with what PyTorch computes.

The reference is a `Sample`: the captured program with the checkpoint's own weights, rounded to the stored precision by
torch. So it shows a broken artifact before that gets its name; what storing costs is told beside it, since two results of
the same rounded weights agree however much was rounded away. `vaefix-validate` compares with the untouched model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vaefix.runtime.errors import ParityError

from .families import Component
from .targets import Job, Target

if TYPE_CHECKING:
    from .sample import Sample

LIMIT = 1e-4  # largest difference, relative to the largest magnitude of the output; SDXL's own size stays below 1e-5
LARGE = 10**9  # a component of more weights than this is executed with full=True only: it would take minutes
SIDE = 8  # of the latent that is executed


def is_executed(job: Job, *, full: bool) -> bool:
    """Whether the component is executed beside PyTorch. full: whatever its size."""
    return full or job.weights <= LARGE


def verify(target: Target, job: Job, folder: Path, sample: Sample | None) -> dict[str, Any]:
    """Check one written component; returns what was compared, for the manifest.

    sample: of the same job; None compares the structure only.
    Raises ParityError naming the component and the output that differs.
    """
    target.engine.check(folder, job)
    if sample is None:
        return {
            "structure": "equal",
            "outputs": f"not compared: {job.weights / 1e9:.1f} G weights; --verify full takes minutes",
        }
    outputs = target.engine.run(folder, job, sample.feeds)
    for name in job.component.outputs:
        _compare(job.component, name, sample.outputs[name], outputs[name])
    # Not the measured difference: its last digits depend on the number of threads, and an artifact must not.
    return {"structure": "equal", "outputs": "equal", "relative_max_abs_limit": LIMIT}


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
