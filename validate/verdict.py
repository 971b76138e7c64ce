"""What was asked, what was compared, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from numpy.typing import NDArray

from .budgets import Budget
from .metrics import Difference

if TYPE_CHECKING:
    from .ranges import LayerRange

Status = Literal["passed", "failed", "not compared"]


@dataclass(frozen=True)
class Comparison:
    """One thing that was asked for.

    component: `unet`, ..., or `generation`.  kind: `config`, or one of those in budgets.py.
    output: `out_sample`, `latents`, ...; empty where nothing could be run.
    failures: what does not hold.  warnings: what holds here and may not elsewhere; they decide nothing.
    obstacle: why it could not be compared, or proves nothing.
    """

    component: str
    kind: str
    output: str = ""
    difference: Difference | None = None
    budget: Budget | None = None
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    obstacle: str | None = None

    @property
    def status(self) -> Status:
        """An obstacle outweighs everything: what could not be compared has neither passed nor failed."""
        if self.obstacle is not None:
            return "not compared"
        return "failed" if self.failures else "passed"


@dataclass(frozen=True)
class Verdict:
    """The result of a validation; a success only if everything asked for was compared and passed.

    ranges: component -> run (`reference`, `artifact`, `emulated`) -> its layers in order of execution.
    steps: of the latents after each denoising step, the artifact's against the reference's.
    pictures: what each run drew, uint8 [H, W, 3]; the reference's is the first.
    """

    artifact: str
    reference: str
    target: str
    seeds: tuple[int, ...]
    comparisons: Sequence[Comparison]
    ranges: Mapping[str, Mapping[str, tuple[LayerRange, ...]]] = field(default_factory=dict)
    steps: tuple[Difference, ...] = ()
    pictures: Mapping[str, NDArray] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Something was asked for, and all of it was compared and passed."""
        return bool(self.comparisons) and all(comparison.status == "passed" for comparison in self.comparisons)

    @property
    def exit_code(self) -> int:
        """0 passed; 1 something was compared and failed; 3 something (or everything) could not be compared."""
        if self.passed:
            return 0
        return 1 if any(comparison.status == "failed" for comparison in self.comparisons) else 3
