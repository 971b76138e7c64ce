"""What an artifact is compared with: the model it was made from, or what that model computed once and was saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.families import find_family
from vaefix.convert.pipeline import tokenizers_of

from .inputs import PictureSize, Prompt, sample_inputs
from .ranges import LayerRange
from .reference import Expected, Feeds, component_outputs, component_ranges, generations


@dataclass(frozen=True)
class Part:
    """One component of the reference. parameters: how many weights its part of the checkpoint has."""

    config: Mapping[str, Any]
    parameters: int


@dataclass(frozen=True)
class Case:
    """Inputs of one component, a dictionary per seed, and what the reference makes of them, stacked over the seeds."""

    feeds: Sequence[Feeds]
    expected: Expected


class Reference(Protocol):
    """name: for the report.  family: as in `Artifact.family`.  parts: by component, in the family's order."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def parts(self) -> Mapping[str, Part]: ...  # noqa: D102

    def case(self, component: str, seeds: Sequence[int], size: PictureSize, precision: str) -> Case:
        """precision: how the artifact stores the component's weights, see `Expected`."""
        ...

    def ranges(self, component: str, seed: int, size: PictureSize, precision: str) -> tuple[LayerRange, ...]:
        """What the layers reach on the input of one seed, the weights rounded as the artifact stores them."""
        ...

    def generations(self, prompts: Sequence[Prompt], precisions: Mapping[str, str]) -> list[Expected]:
        """A generation for each prompt, see `reference.generate`. precisions: by component, as for `case`."""
        ...


class ModelReference:
    """The untouched model; computes in float32, one component in memory at a time. See `Reference`.

    tokenizers: folder and text encoder of each.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        family = find_family(checkpoint)
        components = family.components(checkpoint)
        self._checkpoint = checkpoint
        self.tokenizers = tokenizers_of(family, components)
        self.name, self.family = str(checkpoint.folder), family.__name__.rpartition(".")[2]
        self.parts = {
            component.name: Part(
                checkpoint.config(component.part),
                sum(tensor.count for tensor in checkpoint.tensors(component.part).values()),
            )
            for component in components
        }

    def case(self, component: str, seeds: Sequence[int], size: PictureSize, precision: str) -> Case:
        """See `Reference.case`. Raises CheckpointError or ModelError for weights that cannot be loaded."""
        feeds = [sample_inputs(self._checkpoint, component, seed, size) for seed in seeds]
        return Case(feeds, component_outputs(self._checkpoint, component, feeds, precision))

    def ranges(self, component: str, seed: int, size: PictureSize, precision: str) -> tuple[LayerRange, ...]:
        """See `Reference.ranges`. Raises as `case` does."""
        return component_ranges(self._checkpoint, component, sample_inputs(self._checkpoint, component, seed, size), precision)

    def generations(self, prompts: Sequence[Prompt], precisions: Mapping[str, str]) -> list[Expected]:
        """See `Reference.generations`. Raises as `case` does."""
        return generations(self._checkpoint, prompts, precisions)
