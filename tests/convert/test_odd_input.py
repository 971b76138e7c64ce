"""Models as others write and keep them: what is not needed is ignored, and every spelling of a tokenizer gives its own ids."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401 (its operations, for every Core)
import pytest
from transformers import CLIPTokenizer

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError
from vaefix.runtime.tokenizers import load_tokenizer

SENTENCES = ["a photo of a red cat, at dawn", "Hello  WORLD  isn't it 42", "", "foo zz bar", "x" * 60]
TOKENIZER = "tokenizer"


@pytest.fixture
def model(demo_model: Path, tmp_path: Path) -> Path:
    """A copy of the demo model that a test may rewrite."""
    return Path(shutil.copytree(demo_model, tmp_path / "model"))


@pytest.fixture
def options(model: Path, tmp_path: Path, cache_folder: Path) -> ConvertOptions:
    return ConvertOptions(tmp_path / "out", model, "onnx-cpu", {"*": "fp32"}, components=("text_encoder",), cache=cache_folder)


def test_links_that_lead_nowhere_are_ignored_where_nothing_needs_them(options: ConvertOptions, model: Path) -> None:
    for name in ("README.txt", "notes.json", "unet/README.txt", "vae/loop.json", "tokenizer/README.txt"):
        (model / name).symlink_to("../../blobs/gone" if "loop" not in name else "loop.json")
    assert "text_encoder" in convert(options).components


def test_a_model_of_links_into_blobs_is_converted(options: ConvertOptions, model: Path, tmp_path: Path) -> None:
    """As the hub's cache keeps it."""
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = file.rename(tmp_path / "blobs" / str(number))
        file.symlink_to(blob)
    artifact = convert(options)
    assert not any(path.is_symlink() for path in artifact.folder.rglob("*"))


def with_carriage_returns(folder: Path) -> None:
    merges = folder / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))


def fast_only(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    assert (folder / "tokenizer.json").is_file()


def fast_and_slow(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def without_version(folder: Path) -> None:
    merges = folder / "merges.txt"
    merges.write_bytes(merges.read_bytes().partition(b"\n")[2])


def other_vocabulary(folder: Path) -> None:
    """The same words under other numbers."""
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    last = len(vocabulary) - 3
    moved = {word: last - number if number <= last else number for word, number in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(moved), encoding="utf-8")


def shorter(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 70}))


def added_token(folder: Path) -> None:
    """A word that is always a token of its own: `added_tokens_decoder`, as transformers saves it."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    number = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["zz"]
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    config["added_tokens_decoder"] = {str(number): {"content": "zz", **flags}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SPELLINGS = [with_carriage_returns, fast_only, fast_and_slow, without_version, other_vocabulary, shorter]


def library_ids(folder: Path) -> list[list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return [tokenizer(text).input_ids for text in SENTENCES]


def graph_ids(artifact: Artifact) -> list[list[int]]:
    graph = ov.Core().compile_model(artifact.folder / TOKENIZER / "openvino_tokenizer.xml", "CPU")
    return [graph(np.array([text]))["input_ids"][0].tolist() for text in SENTENCES]


@pytest.mark.parametrize("target", ["openvino-cpu", "onnx-cpu"])
@pytest.mark.parametrize("spell", SPELLINGS)
def test_tokenizers_in_any_spelling_give_the_ids_of_the_library(
    spell: Callable[[Path], None], target: str, options: ConvertOptions, model: Path
) -> None:
    spell(model / TOKENIZER)
    expected = library_ids(model / TOKENIZER)
    artifact = convert(replace(options, target=target))
    tokenizer = load_tokenizer(artifact.folder / TOKENIZER)
    assert [tokenizer(text).input_ids for text in SENTENCES] == expected
    if target == "openvino-cpu":
        assert graph_ids(artifact) == expected


def test_added_tokens_are_right_or_refused(options: ConvertOptions, model: Path) -> None:
    plain = library_ids(model / TOKENIZER)
    added_token(model / TOKENIZER)
    expected = library_ids(model / TOKENIZER)
    assert expected != plain
    tokenizer = load_tokenizer(convert(options).folder / TOKENIZER)
    assert [tokenizer(text).input_ids for text in SENTENCES] == expected
    with pytest.raises(ModelError, match="makes other tokens of 'a zz b'") as caught:
        convert(replace(options, target="openvino-cpu", output=options.output.with_name("ir")))
    assert caught.value.source == str(model / TOKENIZER)
    assert not options.output.with_name("ir").exists()
