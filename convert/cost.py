"""What a conversion says of each component's storage: what it costs against the untouched weights, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vaefix.runtime.errors import ParityError

from .loss import LIMITS, Tally, TensorLoss, overall, two_digits, worst
from .precision import FLOAT16_MAX, PRECISIONS, encode, is_exact
from .targets import Job

if TYPE_CHECKING:
    from .sample import Sample


def cost(job: Job, sample: Sample | None, tally: Tally, repair: str) -> dict[str, Any]:
    """For the manifest: `storing`, `activations` where some are computed in f16, `warnings` where there are any.

    sample: None where the component was not run.  tally: of the weights as they were written; what is missing in it, since
    an earlier attempt has written it, is read again.  repair: the mode that was asked for.
    Raises ParityError where nothing is left of an output.
    """
    losses = _complete(job, tally)
    name, limit = worst(losses), LIMITS[job.precision]
    storing: dict[str, Any] = {"weights": two_digits(overall(losses, job.weights)), "limit": limit}
    if name is not None:
        storing |= {"worst_tensor": name, "worst": two_digits(losses[name].relative)}
    if sample is not None:
        if not sample.loss < 1:
            reason = f"stored as {job.precision}, nothing is left of an output; {name or 'no tensor'} loses most"
            raise ParityError(reason, source=job.component.name, remedy=_remedy(job, repair))
        storing["outputs"] = two_digits(sample.loss)
    found: dict[str, Any] = {"storing": storing}
    if job.execution == "f16":
        found["activations"] = _measured(job, sample)
    warnings = [*_of_storing(job, sample, losses, repair), *_of_activations(job, sample, repair)]
    return found | ({"warnings": warnings} if warnings else {})


def _complete(job: Job, tally: Tally) -> dict[str, TensorLoss]:
    known = tally.losses()
    for parameter, tensor in job.tensors.items():
        exponent, storage = job.plan.parameters.get(parameter, 0), job.storage[parameter]
        if tensor.name not in known and not is_exact(tensor, exponent, storage):
            for _, pieces in encode(tensor, exponent, storage, tally=tally):
                for _ in pieces:
                    pass
    return tally.losses()


def _measured(job: Job, sample: Sample | None) -> str:
    if job.examined or not job.plan.is_empty:
        return "measured"
    if sample is not None:
        return "sampled"
    return f"not measured: {job.weights / 1e9:.1f} G weights; --repair always measures them, --verify full takes one sample"


def _of_storing(job: Job, sample: Sample | None, losses: Mapping[str, TensorLoss], repair: str) -> Iterator[str]:
    """The loss of the outputs beyond what the precision may cost; where those are not known, of each tensor."""
    remedy = _remedy(job, repair)
    if sample is not None:
        limit = LIMITS[job.precision]
        if not sample.loss <= limit:
            name = worst(losses)
            most = f"; {name} loses most, {losses[name].relative:.1e} of itself" if name is not None else ""
            yield f"storing costs {sample.loss:.1e} of an output, {limit:.0e} is usual of {job.precision}{most}; {remedy}"
        return
    limits = {tensor.name: LIMITS[PRECISIONS[job.storage[name].element_type]] for name, tensor in job.tensors.items()}
    beyond = {name: loss.relative for name, loss in losses.items() if not loss.relative <= limits[name]}
    if beyond:
        name = max(beyond, key=beyond.__getitem__)
        what = f"{len(beyond)} tensors lose more by being stored than is usual, {name} most, {beyond[name]:.1e} of itself"
        yield f"{what}; {remedy}"


def _of_activations(job: Job, sample: Sample | None, repair: str) -> Iterator[str]:
    """What overflows in f16, where no repair has looked at it."""
    if sample is None or job.execution != "f16" or job.examined or not job.plan.is_empty:
        return
    peaks = {name: reached.absmax for name, reached in sample.ranges.items()}
    name = max(peaks, key=peaks.__getitem__, default=None)
    if name is not None and peaks[name] > FLOAT16_MAX:
        path = next(op.path or op.name for op in job.program.ops if op.name == name)
        yield f"{path} reaches {peaks[name]:,.0f}, beyond fp16 in which it is executed; {_remedy(job, repair)}"


def _remedy(job: Job, repair: str) -> str:
    precise = f"--precision {job.component.name}=fp32 stores it as it is"
    if not job.plan.is_empty or job.examined or not job.has_range_of_float16:
        return precise
    return f"{'--repair auto' if repair == 'never' else '--repair always'} looks for a repair, {precise}"
