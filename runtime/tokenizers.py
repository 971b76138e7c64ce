"""Loading a CLIP tokenizer, of a model or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ModelError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in this folder.

    Raises ModelError where it is damaged, or incomplete: transformers would make an empty one.
    """
    from transformers import CLIPTokenizer  # not at the top: it takes seconds

    complete = (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    reason = "vocab.json or merges.txt is missing"
    if complete:
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
    raise ModelError(f"no tokenizer ({reason})", source=folder, remedy="give a complete model, or convert it again")
