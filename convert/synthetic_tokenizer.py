"""CLIP's tokenizer with made-up merges: byte-level BPE whose words are runs of letters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


def tokenizer_files(vocabulary: int, pad: str) -> dict[str, str]:
    """File name -> text, for each of `TOKENIZER_FILES`.

    vocabulary: number of tokens: every byte, every byte that ends a word, merges, and two special ones, which come last
    as in CLIP's. pad: the token that fills up to 77.
    """
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols)]
    merges = list(itertools.islice(_merges(), vocabulary - len(tokens) - 2))
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens += [first + second for first, second in merges] + [start, end]
    special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    settings = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    return {
        "vocab.json": json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in merges), ""]),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps({**settings, **special, "tokenizer_class": "CLIPTokenizer"}, indent=2),
    }


def _byte_symbols() -> list[str]:
    """A visible character for each of the 256 bytes, in CLIP's order: printable ones first, as themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of tokens that exist by then, making words of two, three and four letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    last_letters = [letter + "</w>" for letter in letters]
    pairs = ["".join(pair) for pair in itertools.product(letters, letters)]
    yield from itertools.product(letters, letters)
    yield from itertools.product(letters, last_letters)
    yield from itertools.product(pairs, last_letters)
    yield from itertools.product(pairs, letters)
    yield from itertools.product(pairs, pairs)
