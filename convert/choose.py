"""`--precision auto`: for each component the most accurate precision with which it runs within a budget.

Components run one at a time, so each may use the whole budget and is chosen for itself. On a CPU the pages of its mapped file
count too: a run reads all of them, and what does not fit would be read from the disk again in every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from vaefix.runtime.errors import ResourceError, UsageError
from vaefix.runtime.memory import gigabytes, ladder
from vaefix.runtime.needs import Model, Place, needs_of

from .policy import storages, weight_counts
from .request import ConvertOptions, Request
from .targets import Job, Target

AUTO = "auto"
ERRORS: Mapping[str, Mapping[str, float]] = {
    "text_encoder": {"fp16": 0, "bf16": 0.0063, "int8": 0.0163, "fp8_e4m3": 0.0511, "fp8_e5m2": 0.104, "int4": 0.256},
    "text_encoder_2": {"fp16": 0, "bf16": 0.0060, "int8": 0.0157, "fp8_e4m3": 0.0412, "fp8_e5m2": 0.0785, "int4": 0.224},
    "unet": {"fp16": 0, "bf16": 0.0045, "int8": 0.0047, "fp8_e4m3": 0.0080, "fp8_e5m2": 0.0194, "int4": 0.0351},
    "vae_encoder": {"fp16": 0, "bf16": 0.0103, "int8": 0.0073, "fp8_e4m3": 0.0516, "fp8_e5m2": 0.105, "int4": 0.0170},
    "vae_decoder": {"fp16": 0, "bf16": 0.0076, "int8": 0.0053, "fp8_e4m3": 0.0439, "fp8_e5m2": 0.0808, "int4": 0.0065},
}
"""What storing the weights so does to the output: root mean square of its error over that of the output. Measured on the demo
model with weights as trained ones are distributed (its VAE's are uniform), four inputs each, OpenVINO on a CPU in f32; bf16 in
bf16. In fp16 are the weights that models are published with; so fp32 is never chosen, and has to be asked for."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for a component.

    error: of its output, relative, from `ERRORS`.  needed_bytes: to run it alone, mapped pages included.
    considered: the same for each precision that could have been chosen.
    """

    component: str
    precision: str
    error: float
    needed_bytes: int
    considered: Mapping[str, int]


def resolve(options: ConvertOptions) -> tuple[ConvertOptions, tuple[Choice, ...]]:
    """The options with a precision in the place of every `auto`, and what was chosen; untouched where nothing is `auto`.

    Raises RequestError for `auto` without a budget, or a budget without `auto`; what `choose` and `Request.of` raise.
    """
    if AUTO not in options.precision.values():
        if options.budget is None:
            return options, ()
        reason = "a budget leaves nothing to choose"
        raise UsageError(reason, source="--budget", remedy="add --precision auto, or leave it out")
    if options.budget is None:
        raise UsageError("auto chooses within a budget", source="--precision", remedy="add one, as in --budget 4GB")
    concrete = {name: "fp16" if precision == AUTO else precision for name, precision in options.precision.items()}
    request = Request.of(replace(options, precision=concrete))
    jobs = tuple(request.jobs())
    asked = {job.component.name: options.precision.get(job.component.name, options.precision.get("*", AUTO)) for job in jobs}
    chosen = choose(jobs, asked, request.target, options.budget)
    return replace(options, precision={choice.component: choice.precision for choice in chosen}, budget=None), chosen


def choose(prepared: Iterable[Job], asked: Mapping[str, str], target: Target, budget_bytes: int) -> tuple[Choice, ...]:
    """Resolve `auto`.

    prepared: every component, in whatever precision.  asked: component -> its precision, or `auto`.
    The two halves of a VAE are stored alike: an encoder follows its decoder, whatever it needs, as drawing never loads it.
    Raises ResourceError naming the smallest budget that can be kept, and the component that asks for it.
    """
    by_name = {job.component.name: job for job in prepared}
    follower = {"vae_encoder"} if asked.get("vae_encoder") == AUTO and "vae_decoder" in by_name else set()
    needed = {
        name: _needed(job, _candidates(asked[name], target), target) for name, job in by_name.items() if name not in follower
    }
    least = {name: min(sizes.values()) for name, sizes in needed.items()}
    worst = max(least, key=least.__getitem__)
    if least[worst] > budget_bytes:
        smallest = gigabytes(least[worst])
        reason = f"{gigabytes(budget_bytes)} is too little: {worst} needs {smallest} in the precision that takes least"
        raise ResourceError(reason, source="--budget", remedy=f"give --budget {smallest.replace(' ', '')}")
    chosen = {name: _most_accurate(name, sizes, budget_bytes) for name, sizes in needed.items()}
    for name in follower:
        chosen[name] = chosen["vae_decoder"]
        needed[name] = _needed(by_name[name], (chosen[name],), target)
    return tuple(
        Choice(name, chosen[name], _error(name, chosen[name]), needed[name][chosen[name]], needed[name]) for name in by_name
    )


def _candidates(asked: str, target: Target) -> tuple[str, ...]:
    if asked != AUTO:
        return (asked,)
    return tuple(precision for precision in next(iter(ERRORS.values())) if precision in target.execution)


def _needed(job: Job, candidates: Iterable[str], target: Target) -> dict[str, int]:
    """Precision -> bytes to run the component alone, giving up what the last rung of the ladder gives up."""
    component = job.component
    picture = component.picture
    needed = {}
    for precision in candidates:
        counts = weight_counts(job.program, storages(job.program, precision, component.kept))
        model = Model(component.name, component.config, counts)
        place = Place(target.engine_name, target.device.upper(), target.execution[precision], low_memory=True)
        rungs = ladder([(model, place)], picture.height, picture.width, factor=picture.factor)
        needed[precision] = rungs[-1].needed_bytes + needs_of(model, place, picture).mapped
    return needed


def _most_accurate(name: str, sizes: Mapping[str, int], budget_bytes: int) -> str:
    fitting = [precision for precision, size in sizes.items() if size <= budget_bytes]
    return min(fitting, key=lambda precision: (_error(name, precision), sizes[precision]))


def _error(name: str, precision: str) -> float:
    return 0.0 if precision == "fp32" else ERRORS[name][precision]


def table(choices: Iterable[Choice]) -> Table:
    """For people: a line for each component."""
    title = "chosen: GB to run one component at a time at the model's own size, mapped weights included; error of its output"
    shown = Table(title=title, box=box.SIMPLE)
    shown.add_column("", no_wrap=True)
    for heading in ("precision", "GB", "error", "instead of"):
        shown.add_column(heading)
    for choice in choices:
        others = (f"{name} {size / 1e9:.2f}" for name, size in choice.considered.items() if name != choice.precision)
        needs, error = f"{choice.needed_bytes / 1e9:.2f}", f"{choice.error:.2%}"
        shown.add_row(choice.component, choice.precision, needs, error, ", ".join(others))
    return shown
