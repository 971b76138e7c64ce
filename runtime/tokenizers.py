"""Loading a CLIP tokenizer, of a model or an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import read_object, require_file
from .errors import ModelError
from .libraries import refusals

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONFIG = "tokenizer_config.json"
_OBJECTS = {CONFIG, "vocab.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"}
_REMEDY = "give a complete model, or convert it again"
_SENTENCE = "A photo of 3 cats, at dawn"
_UNREACHABLE = 0.1  # of the words: CLIP's own has none


def check_tokenizer_files(folder: Path) -> None:
    """What is known without the library. Raises ModelError for a file that is missing, no file, or no JSON object."""
    there = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there.keys():
        raise ModelError("no tokenizer (vocab.json or merges.txt is missing)", source=folder, remedy=_REMEDY)
    for name, path in there.items():
        if name in _OBJECTS:
            read_object(path, ModelError, remedy=_REMEDY)
        elif path.exists() and not path.is_dir():
            require_file(path, ModelError, remedy=_REMEDY)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in this folder.

    Raises ModelError where it is damaged, or incomplete: transformers would make an empty one.
    """
    check_tokenizer_files(folder)
    with refusals(ModelError, "no tokenizer", source=folder, remedy=_REMEDY):
        from transformers import CLIPTokenizer  # not at the top: it takes seconds

        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer(_SENTENCE)  # some damage shows only now
    return tokenizer


def check_tokenizer(folder: Path, vocabulary: int, positions: int) -> None:
    """Raise ModelError unless the tokenizer feeds a text encoder of so many token ids and positions as CLIP's does."""

    def refused(reason: str, file: str = CONFIG) -> ModelError:
        return ModelError(reason, source=folder / file, remedy="give the tokenizer that belongs to the text encoder")

    config = read_object(folder / CONFIG, ModelError, remedy=_REMEDY)
    named = str(config.get("tokenizer_class") or "CLIPTokenizer")
    if named not in {"CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"}:
        raise refused(f"a {named}, not CLIP's tokenizer")
    tokenizer = load_tokenizer(folder)
    length = tokenizer.model_max_length
    if not (isinstance(length, int) and 2 < length <= positions):
        raise refused(f"model_max_length is {length!r}, the text encoder has {positions} positions")
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary:
        raise refused(f"a token has the id {highest}, the text encoder has {vocabulary} (vocab_size)", "")
    if (share := _unreachable(_model(tokenizer), tokenizer.get_added_vocab())) > _UNREACHABLE:
        raise refused(f"no merge makes {share:.0%} of its words: merges.txt or tokenizer.json is damaged", "")
    with refusals(ModelError, "it cannot tokenize", source=folder, remedy=_REMEDY):
        ids = tokenizer(_SENTENCE, padding="max_length", truncation=True).input_ids  # as diffusers asks
    if len(ids) != length:
        raise refused(f"it pads to {len(ids)} tokens, not to {length}")


def _model(tokenizer: Any) -> Mapping[str, Any]:
    """Its byte-pair encoding, in the words of tokenizer.json."""
    if hasattr(tokenizer, "backend_tokenizer"):
        model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        return model
    return {"type": "BPE", "vocab": tokenizer.encoder, "merges": list(map(list, tokenizer.bpe_ranks))}  # transformers 4


def _unreachable(model: Mapping[str, Any], added: Mapping[str, int]) -> float:
    """The share of the words of more than one symbol that no merge makes; all of them for what is no byte-pair encoding."""
    if model["type"] != "BPE":
        return 1.0
    words = {word for word in model["vocab"] if len(word.removesuffix("</w>")) > 1} - added.keys()
    made = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "") for pair in model["merges"]}
    return len(words - made) / max(len(words), 1)
