"""Compare an artifact with the model it was made from: each component, then a whole short generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from vaefix.runtime.progress import Activity

from .components import compare_component
from .drawing import GENERATION, Drawn, draw
from .inputs import Prompt, prompt_text
from .request import EMULATIONS, ValidateOptions
from .saved import Recorder
from .subject import Subject, config_comparison, open_subject, selected
from .tokenizing import compare_tokenizer
from .tracing import Ranges
from .verdict import Comparison, Verdict

__all__ = ["ValidateOptions", "validate"]


def validate(options: ValidateOptions, progress: Callable[[Activity], None] = lambda _: None) -> Verdict:
    """Compare everything asked for; whatever could not be compared is in the verdict too, with the reason.

    progress: called when something begins.
    Raises InputError when there is nothing sensible to compare: a damaged artifact, another model, an unknown name.
    """
    progress(Activity("check the files"))
    subject = open_subject(options)
    names = selected(subject)
    count = len(names) + options.generation
    configs = {name: config_comparison(subject, name) for name in names}
    comparisons: list[Comparison] = []
    ranges: dict[str, Ranges] = {}
    for number, name in enumerate(names, 1):
        found, layers = compare_component(subject, name, partial(_announce, progress, name, number, count))
        tokens = compare_tokenizer(subject.artifact.folder, name, list(map(prompt_text, options.seeds)))
        comparisons += [configs[name], *tokens, *found]
        if layers:
            ranges[name] = layers
    if options.emulate and not any(comparison.kind == "emulated" for comparison in comparisons):
        comparisons.append(Comparison("all", "emulated", obstacle=_nothing_to_emulate(subject, names)))
    drawn = Drawn()
    if options.generation:
        drawn = draw(subject, _prompts(options), partial(_announce, progress, GENERATION, count, count))
        comparisons += drawn.comparisons
    if isinstance(subject.reference, Recorder) and options.save_reference is not None:
        subject.reference.save(options.save_reference)
    return Verdict(
        artifact=str(subject.artifact.folder),
        reference=subject.reference.name,
        target=subject.artifact.target,
        seeds=options.seeds,
        comparisons=tuple(comparisons),
        ranges=ranges,
        steps=drawn.steps,
        pictures=drawn.pictures,
    )


def _announce(progress: Callable[[Activity], None], part: str, number: int, count: int, what: str) -> None:
    progress(Activity(what, part, number, count))


def _nothing_to_emulate(subject: Subject, names: Sequence[str]) -> str:
    executed = {subject.artifact.component(name).execution for name in names}
    others = [name for name, execution in EMULATIONS.items() if execution in executed]
    advice = f": ask for --emulate {others[0]}" if others else ""
    found = ", ".join(sorted(executed))
    return f"made for {subject.artifact.target}, it computes in {found}, not in {subject.options.emulate}{advice}"


def _prompts(options: ValidateOptions) -> list[Prompt]:
    """Every prompt with every seed; where there are no prompts, each seed has a sentence of its own."""
    return [
        Prompt(text, seed, options.steps, options.size)
        for seed in options.seeds
        for text in options.prompts or (prompt_text(seed),)
    ]
