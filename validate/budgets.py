"""How far an artifact may be from its reference, per kind of comparison, each limit with what it rests on.

Kinds of comparison:

- `parity`: the graph in f32 against the reference with its weights rounded as the artifact stores them. Both are the
  same function, so only the order of summation may differ, and one wrong weight shows.
- `storage`: the graph in f32 against the untouched reference, where storing lost bits: what the precision costs.
- `emulated`: the graph in emulated fp16 or bf16 against the reference with rounded weights: what a 16-bit GPU costs.
- `hardware`: the graph on a device, in what that computes in, against the reference with rounded weights.

bf16 has an eighth of fp16's resolution, and its range asks for no repair: its limits are wider, though still below
what a scale wrong by 2% gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from vaefix.convert.loss import LIMITS

from .metrics import Difference

Kind = Literal["parity", "storage", "emulated", "hardware"]

ARITHMETIC = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
"""`Session.precision` -> the precision of its budget."""
COARSENESS = ("fp32", "fp16", "bf16", "int8", "fp8_e4m3", "fp8_e5m2", "int4")
"""Precisions by what storing costs, the least first."""
SMALL_PARAMETERS = 20_000_000


@dataclass(frozen=True)
class Budget:
    """Limits on a Difference; None sets no limit.

    max_abs: of the largest error, in units of the reference's peak, at least of 1.
    relative: of the rms error over the reference's rms.  psnr_db: the least PSNR.  ssim: the least SSIM of a picture.
    evidence: what was measured, and how far the limit is from it.
    """

    evidence: str
    max_abs: float | None = None
    relative: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None

    def failures(self, difference: Difference) -> tuple[str, ...]:
        """Every limit that does not hold, in words; none when the difference is within the budget. NaN never is."""
        if difference.nonfinite_actual or difference.nonfinite_reference:
            return (f"{difference.nonfinite_actual} of {difference.count} values are not finite",)
        return tuple(self._exceeded(difference))

    def _exceeded(self, difference: Difference) -> Iterator[str]:
        if self.max_abs is not None:
            limit = self.max_abs * max(1.0, difference.peak)
            if not difference.max_abs <= limit:
                yield f"max abs {difference.max_abs:.2e}, allowed {limit:.2e}"
        if self.relative is not None and not difference.relative <= self.relative:
            yield f"relative error {difference.relative:.2e}, allowed {self.relative:.2e}"
        if self.psnr_db is not None and not difference.psnr_db >= self.psnr_db:
            yield f"PSNR {difference.psnr_db:.1f} dB, at least {self.psnr_db:.1f} dB needed"
        if self.ssim is not None and difference.ssim is not None and not difference.ssim >= self.ssim:
            yield f"SSIM {difference.ssim:.5f}, at least {self.ssim:.5f} needed"


_PARITY_SMALL = Budget(
    max_abs=2e-5,
    relative=4e-6,
    evidence="69 healthy conversions of the demo model: at most 3.5e-6 max abs, 1.0e-6 relative; GELU by tanh gives 5.5e-6",
)
_PARITY_LARGE = Budget(
    max_abs=1e-3,
    relative=1e-4,
    evidence="full-size VAE, random weights, up to 512 px: 6.5e-6 max abs, 1.9e-6 relative; trained weights have outliers",
)
_WEIGHTS = "uniform weights and such as trained models have"
_STORAGE = {
    "fp16": Budget(
        relative=LIMITS["fp16"],
        psnr_db=65,
        evidence="demo model with float32 weights stored as fp16: at most 8.5e-4 relative, at least 77 dB",
    ),
    "bf16": Budget(
        relative=LIMITS["bf16"],
        psnr_db=50,
        evidence="demo model stored as bf16, 8 seeds: at most 6.7e-3 relative, at least 57 dB; a scale wrong by 2% gives 2e-2",
    ),
    "int8": Budget(
        relative=LIMITS["int8"],
        psnr_db=40,
        evidence=f"demo model, {_WEIGHTS}: at most 2.0e-2 relative, at least 49 dB; full-size encoders 3.8e-2, 45 dB",
    ),
    "fp8_e4m3": Budget(
        relative=LIMITS["fp8_e4m3"],
        psnr_db=30,
        evidence=f"demo model, {_WEIGHTS}: at most 8.4e-2 relative, at least 38 dB",
    ),
    "fp8_e5m2": Budget(
        relative=LIMITS["fp8_e5m2"],
        psnr_db=27,
        evidence=f"demo model, {_WEIGHTS}: at most 1.04e-1 relative, at least 34 dB",
    ),
    "int4": Budget(
        relative=LIMITS["int4"],
        psnr_db=18,
        evidence=f"demo model, {_WEIGHTS}: at most 2.7e-1 relative, at least 26 dB",
    ),
}
_EMULATED = {
    "fp16": Budget(
        relative=5e-3,
        psnr_db=60,
        evidence="healthy and repaired: at most 1.5e-3 relative (torch half 3.7e-3), at least 73 dB; bf16 has 1.1e-2 and 56 dB",
    ),
    "bf16": Budget(
        relative=1.8e-2,
        psnr_db=48,
        evidence="demo model, 8 seeds: at most 1.13e-2 relative, at least 53 dB, as in torch bfloat16 (1.09e-2, 53 dB)",
    ),
}
_GENERATION_SMALL = Budget(
    max_abs=1e-4,
    relative=1.5e-5,
    ssim=0.9999,
    evidence="demo model, up to 30 steps: 3e-6 of the peak, 1.7e-6 relative; timesteps cut to whole ones give 3.5e-5",
)
_GENERATION_LARGE = Budget(
    max_abs=1e-3,
    relative=1e-3,
    ssim=0.9999,
    evidence="ten times the component's limit for trained weights, which have outliers; none were at hand",
)
_GENERATION_STORAGE = {
    "fp16": Budget(
        relative=5e-3,
        psnr_db=50,
        ssim=0.999,
        evidence="demo model with float32 weights stored as fp16, 5 steps: latents 7e-4 and 78 dB, picture 2.7e-4 and 75 dB",
    ),
    "bf16": Budget(
        relative=1.2e-2,
        psnr_db=47,
        ssim=0.998,
        evidence="demo model stored as bf16, 5 steps, 3 seeds: latents 4e-3 and 62 dB, picture 2.2e-3 and 57 dB",
    ),
    "int8": Budget(
        relative=8e-2,
        psnr_db=38,
        ssim=0.995,
        evidence=f"demo model, {_WEIGHTS}, 5 steps: at most 2.9e-2 relative, at least 45 dB, SSIM 0.9995",
    ),
    "fp8_e4m3": Budget(
        relative=2e-1,
        psnr_db=29,
        ssim=0.97,
        evidence=f"demo model, {_WEIGHTS}, 5 steps: at most 6.7e-2 relative, at least 36 dB, SSIM 0.995",
    ),
    "fp8_e5m2": Budget(
        relative=3e-1,
        psnr_db=24,
        ssim=0.93,
        evidence=f"demo model, {_WEIGHTS}, 5 steps: at most 1.4e-1 relative, at least 30 dB, SSIM 0.982",
    ),
    "int4": Budget(
        relative=6e-1,
        psnr_db=20,
        ssim=0.85,
        evidence=f"demo model, {_WEIGHTS}, 5 steps: at most 2.6e-1 relative, at least 27 dB, SSIM 0.972",
    ),
}
_GENERATION_IN_16_BITS = {
    "fp16": Budget(
        relative=5e-3,
        psnr_db=58,
        ssim=0.9995,
        evidence="demo model, every component emulated, 5 and 20 steps: at most 1.6e-3 relative, 66 dB, SSIM 0.99999",
    ),
    "bf16": Budget(
        relative=1.8e-2,
        psnr_db=44,
        ssim=0.998,
        evidence="demo model, every component emulated, 5 and 20 steps: at most 1.2e-2 relative, 49 dB, SSIM 0.9995",
    ),
}
EXACT = Budget(max_abs=0, evidence="whole numbers, and numbers that are handed on and not computed")
HANDED_ON = ("time_ids", "timestep", "timestep_cond")
"""Outputs of a generation that must be exact."""


def component_budget(kind: Kind, parameters: int, precision: str) -> Budget:
    """The budget of one component's outputs.

    parameters: how many weights its part of the checkpoint has.
    precision: of the weights for `storage`, of the arithmetic for `emulated` (`fp16`, `bf16`) and `hardware` (`fp32` too).
    """
    if kind == "parity":
        return _PARITY_SMALL if parameters <= SMALL_PARAMETERS else _PARITY_LARGE
    if kind == "storage":
        return _STORAGE[precision]
    if kind == "emulated":
        return _EMULATED[precision]
    return _on_hardware(_PARITY_LARGE if precision == "fp32" else _EMULATED[precision])


def generation_budget(kind: Kind, parameters: int, precision: str) -> Budget:
    """The budget of what a short generation makes.

    parameters: of the largest component.
    precision: the coarsest in which weights are stored for `storage`; that of the arithmetic for `emulated`, which is a
    decode, and `hardware`.
    """
    if kind == "parity":
        return _GENERATION_SMALL if parameters <= SMALL_PARAMETERS else _GENERATION_LARGE
    if kind == "storage":
        return _GENERATION_STORAGE[precision]
    if kind == "emulated":
        return _EMULATED[precision]
    return _on_hardware(_GENERATION_LARGE if precision == "fp32" else _GENERATION_IN_16_BITS[precision])


def _on_hardware(limits: Budget) -> Budget:
    return replace(limits, evidence=f"no card was measured; the limits on a CPU: {limits.evidence}")
