"""A CLIP tokenizer as OpenVINO graphs, which openvino_genai needs beside the Hugging Face files."""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from vaefix.runtime.errors import ModelError
from vaefix.runtime.libraries import refusals
from vaefix.runtime.tokenizers import load_tokenizer

_TEXTS = ("a photo of 3 red cats, at dawn", "Hello  WORLD", "")
_ADDED = 50  # tokens that are compared
_REMEDY = "convert to ONNX, whose users tokenize in Python, or remove what was added to CLIP's tokenizer"


def tokenizer_graphs(folder: Path) -> dict[str, str]:
    """File name -> base64 of its bytes: tokenizer and detokenizer, the same on every run.

    Raises ModelError where the graph reads a text otherwise than the library's tokenizer does.
    """
    from openvino_tokenizers import convert_tokenizer

    tokenizer = load_tokenizer(folder)
    files: dict[str, bytes] = {}
    with refusals(ModelError, "OpenVINO cannot convert this tokenizer", source=folder, remedy=_REMEDY):
        graphs = convert_tokenizer(_fast(tokenizer, folder), with_detokenizer=True)
        _compare(tokenizer, graphs[0], folder)
        for name, model in zip(("tokenizer", "detokenizer"), graphs, strict=True):
            with tempfile.TemporaryDirectory() as scratch:
                xml = Path(scratch, f"openvino_{name}.xml")
                ov.serialize(model, xml)
                files[xml.name] = _renumber(xml.read_text(encoding="utf-8")).encode()
                files[f"openvino_{name}.bin"] = xml.with_suffix(".bin").read_bytes()
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def _fast(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer as OpenVINO takes it; transformers 4 has another class for that."""
    if tokenizer.is_fast:
        return tokenizer
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)


def _compare(tokenizer: Any, graph: ov.Model, folder: Path) -> None:
    """Plain words, and the tokens that were added to CLIP's own, which the graph does not know."""
    compiled = ov.Core().compile_model(graph, "CPU")
    own = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    added = sorted(tokenizer.get_added_vocab().keys() - own)
    for text in [*_TEXTS, *(f"a {token} b" for token in added[:_ADDED])]:
        wanted, found = tokenizer(text).input_ids, compiled(np.array([text]))["input_ids"][0].tolist()
        if wanted != found:
            reason = f"OpenVINO's tokenizer makes other tokens of {text!r} than the library's: {found}, not {wanted}"
            raise ModelError(reason, source=folder, remedy=_REMEDY)


_NAMES = re.compile(r'(?<= )(?:output_)?names?="[^"]*"')
_GENERATED = re.compile(r"\b([A-Z][A-Za-z0-9]*)_\d+\b")


def _renumber(xml: str) -> str:
    """The graph with its generated names (`Slice_359`), which count up over the life of the process, numbered from 0."""
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return numbers.setdefault(match[0], f"{match[1]}_{len(numbers)}")

    return _NAMES.sub(lambda names: _GENERATED.sub(number, names[0]), xml)
