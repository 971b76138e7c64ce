"""The tokenizers as OpenVINO graphs, which openvino_genai reads, against those of transformers in the same folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaefix.runtime.errors import ArtifactError, VaefixError
from vaefix.runtime.install import not_installed
from vaefix.runtime.tokenizers import load_tokenizer

from .budgets import EXACT
from .metrics import compare
from .verdict import Comparison

_GRAPH = "openvino_tokenizer.xml"


def compare_tokenizer(artifact: Path, component: str, sentences: Sequence[str]) -> list[Comparison]:
    """The token ids of some plain sentences; nothing for what is no text encoder, or has no such graph beside its tokenizer.

    The two treat a few rare letters differently, such as the Turkish capital
    I with a dot. What transformers makes of a prompt is judged in the generation.
    """
    folder = artifact / component.replace("text_encoder", "tokenizer")
    if folder.name == component or not (folder / _GRAPH).is_file():
        return []
    texts = [*sentences, ""]  # of several lengths, so that the padding shows
    result = Comparison(component, "tokenizer", _GRAPH, budget=EXACT)
    try:
        difference = compare(_in_transformers(folder, texts), _in_openvino(folder / _GRAPH, texts), source=_GRAPH)
    except VaefixError as error:
        return [replace(result, obstacle=str(error))]
    return [replace(result, difference=difference, failures=EXACT.failures(difference))]


def _in_transformers(folder: Path, texts: list[str]) -> NDArray:
    ids: NDArray = load_tokenizer(folder)(texts, padding=True, return_tensors="np").input_ids
    return ids


def _in_openvino(graph: Path, texts: list[str]) -> NDArray:
    try:
        import openvino
        import openvino_tokenizers  # noqa: F401 (its operations, for every Core)
    except ImportError as error:
        raise not_installed(str(error.name), "openvino", source=str(graph)) from None
    try:
        ids: NDArray = openvino.Core().compile_model(graph, "CPU")(np.array(texts))["input_ids"]
    except RuntimeError as error:
        raise ArtifactError(f"unreadable graph ({error})", source=graph) from error
    return ids
