"""A reference in one safetensors file: computed once on a big machine, compared on the one that runs the artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vaefix.runtime.defaults import completed
from vaefix.runtime.documents import parse
from vaefix.runtime.errors import ModelError, RequestError, ResourceError
from vaefix.runtime.files import whole

from .inputs import PictureSize, Prompt
from .outputs import SAVED_FORMAT
from .ranges import LayerRange
from .reference import Expected, Feeds
from .references import Case, Part, Reference

_SAVE = "give a file written by vaefix-validate --save-reference"
_ASK_AGAIN = "compare as it was saved (seeds, size, steps, prompts), or save it again with --save-reference"


class Recorder:
    """A reference that remembers everything that was asked of it. See `Reference`."""

    def __init__(self, reference: Reference) -> None:
        self.name, self.family, self.parts = reference.name, reference.family, reference.parts
        self._reference = reference
        self._answers: list[str] = []
        self._tensors: dict[str, NDArray] = {}
        self._ranges: dict[str, list[dict[str, Any]]] = {}

    def case(self, component: str, seeds: Sequence[int], size: PictureSize, precision: str) -> Case:
        """See `Reference.case`."""
        case = self._reference.case(component, seeds, size, precision)
        self._keep(_case_key(component, seeds, size, precision), case.expected, case.feeds)
        return case

    def ranges(self, component: str, seed: int, size: PictureSize, precision: str) -> tuple[LayerRange, ...]:
        """See `Reference.ranges`."""
        ranges = self._reference.ranges(component, seed, size, precision)
        self._ranges[_case_key(component, [seed], size, precision)] = [asdict(layer) for layer in ranges]
        return ranges

    def generations(self, prompts: Sequence[Prompt], precisions: Mapping[str, str]) -> list[Expected]:
        """See `Reference.generations`."""
        found = self._reference.generations(prompts, precisions)
        for prompt, expected in zip(prompts, found, strict=True):
            self._keep(_generation_key(prompt, precisions), expected, ())
        return found

    def save(self, path: Path) -> None:
        """Write everything into one file. Raises ResourceError where that is not possible."""
        about: dict[str, Any] = {"name": self.name, "family": self.family, "answers": self._answers, "ranges": self._ranges}
        about["parts"] = {name: asdict(part) for name, part in self.parts.items()}
        about["tensors"] = list(self._tensors)  # in order, which the file does not keep
        try:
            with whole(path) as file:
                save_file(self._tensors, file, {"format": SAVED_FORMAT, "reference": json.dumps(about)})
        except (OSError, SafetensorError) as error:
            raise ResourceError(f"cannot be written ({error})", source=path, remedy="choose another --save-reference") from None

    def _keep(self, key: str, expected: Expected, feeds: Sequence[Feeds]) -> None:
        number = len(self._answers)
        self._answers.append(key)
        groups = {"untouched": expected.untouched, **{f"feeds.{index}": feed for index, feed in enumerate(feeds)}}
        if expected.stored is not expected.untouched:
            groups["stored"] = expected.stored
        for group, tensors in groups.items():
            self._tensors |= {f"{number}/{group}/{name}": np.ascontiguousarray(value) for name, value in tensors.items()}


class SavedReference:
    """What a Recorder saved. See `Reference`; asked for anything else, it raises RequestError."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError for a file that is damaged, or no saved reference."""
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            if metadata.get("format") != SAVED_FORMAT:
                raise ValueError(f"its format is {metadata.get('format')}, not {SAVED_FORMAT}")
            about = parse(metadata["reference"].encode(), ModelError, source=path, remedy=_SAVE)
            self.name, self.family = f"{path}, of {about['name']}", str(about["family"])
            self.parts = {
                name: Part(completed(part["config"], name), int(part["parameters"])) for name, part in about["parts"].items()
            }
            self._path, self._answers = path, list(about["answers"])
            self._tensors = {name: tensors[name] for name in about["tensors"]}
            self._ranges = {
                key: tuple(LayerRange(**{**layer, "sketch": tuple(layer["sketch"])}) for layer in layers)
                for key, layers in about["ranges"].items()
            }
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"no saved reference ({error})", source=path, remedy=_SAVE) from None

    def case(self, component: str, seeds: Sequence[int], size: PictureSize, precision: str) -> Case:
        """See `Reference.case`."""
        number = self._find(_case_key(component, seeds, size, precision))
        feeds = [self._group(f"{number}/feeds.{index}/") for index in range(len(seeds))]
        return Case(feeds, self._expected(number))

    def ranges(self, component: str, seed: int, size: PictureSize, precision: str) -> tuple[LayerRange, ...]:
        """See `Reference.ranges`."""
        key = _case_key(component, [seed], size, precision)
        if key not in self._ranges:
            raise RequestError(f"has no ranges for {key}", source=self._path, remedy="save it again with --ranges")
        return self._ranges[key]

    def generations(self, prompts: Sequence[Prompt], precisions: Mapping[str, str]) -> list[Expected]:
        """See `Reference.generations`."""
        return [self._expected(self._find(_generation_key(prompt, precisions))) for prompt in prompts]

    def _find(self, key: str) -> int:
        if key not in self._answers:
            raise RequestError(f"has nothing for {key}", source=self._path, remedy=_ASK_AGAIN)
        return self._answers.index(key)

    def _expected(self, number: int) -> Expected:
        untouched = self._group(f"{number}/untouched/")
        return Expected(untouched, self._group(f"{number}/stored/") or untouched)

    def _group(self, prefix: str) -> dict[str, NDArray]:
        return {name.removeprefix(prefix): value for name, value in self._tensors.items() if name.startswith(prefix)}


def _case_key(component: str, seeds: Sequence[int], size: PictureSize, precision: str) -> str:
    return f"{component} in {precision}, seeds {', '.join(map(str, seeds))}, {size.width}x{size.height}"


def _generation_key(prompt: Prompt, precisions: Mapping[str, str]) -> str:
    stored = ", ".join(f"{name} in {precision}" for name, precision in sorted(precisions.items()))
    return f"{prompt} with {stored}"
