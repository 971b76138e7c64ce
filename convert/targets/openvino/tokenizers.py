"""A CLIP tokenizer as OpenVINO graphs, which openvino_genai needs beside the Hugging Face files."""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path

import openvino as ov


def tokenizer_graphs(folder: Path) -> dict[str, str]:
    """File name -> base64 of its bytes: tokenizer and detokenizer, the same on every run."""
    from openvino_tokenizers import convert_tokenizer
    from transformers import CLIPTokenizerFast

    tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    files: dict[str, bytes] = {}
    for name, model in zip(("tokenizer", "detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True), strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            xml = Path(scratch, f"openvino_{name}.xml")
            ov.serialize(model, xml)
            files[xml.name] = _renumber(xml.read_text(encoding="utf-8")).encode()
            files[f"openvino_{name}.bin"] = xml.with_suffix(".bin").read_bytes()
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


_NAMES = re.compile(r'(?<= )(?:output_)?names?="[^"]*"')
_GENERATED = re.compile(r"\b([A-Z][A-Za-z0-9]*)_\d+\b")


def _renumber(xml: str) -> str:
    """The graph with its generated names (`Slice_359`), which count up over the life of the process, numbered from 0."""
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        return numbers.setdefault(match[0], f"{match[1]}_{len(numbers)}")

    return _NAMES.sub(lambda names: _GENERATED.sub(number, names[0]), xml)
