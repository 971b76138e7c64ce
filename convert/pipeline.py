"""What of a pipeline is no network: its index, scheduler and tokenizers. They are tried with the library, and copied."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vaefix.runtime.errors import ModelError
from vaefix.runtime.schedulers import CONFIG, load_scheduler
from vaefix.runtime.tokenizers import CONFIG as TOKENIZER_CONFIG
from vaefix.runtime.tokenizers import check_tokenizer
from vaefix.runtime.tokenizers import check_tokenizer_files as check_its_files

from .cache import cached
from .checkpoint import Checkpoint, read_config, read_file
from .families import Component

if TYPE_CHECKING:
    from .request import Request
    from .writer import Stage

_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def check_scheduler_file(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a scheduler's file that is missing or malformed. No library is needed for that."""
    read_config(checkpoint.folder / "scheduler" / CONFIG)


def check_tokenizer_files(checkpoint: Checkpoint, name: str) -> None:
    """Raise ModelError for a file of a tokenizer that is missing or malformed. No library is needed for that."""
    checkpoint.config(name, TOKENIZER_CONFIG)
    check_its_files(checkpoint.folder / name)


def check_scheduler(checkpoint: Checkpoint, cache: Path | None) -> None:
    """Raise ModelError unless the library's scheduler can draw with its config. What passed is cached, see `cached`."""
    source, folder = checkpoint.folder / "model_index.json", checkpoint.folder / "scheduler"
    name = checkpoint.index["scheduler"][1]

    def passes() -> bool:
        load_scheduler(folder, name, ModelError, source=source, remedy="give the scheduler of an SDXL model")
        return True

    check_scheduler_file(checkpoint)
    cached(cache, "scheduler", {"class": name, "config": _text(read_file(folder / CONFIG))}, passes)


def tokenizers_of(family: ModuleType, components: Iterable[Component]) -> tuple[tuple[str, Component], ...]:
    """Tokenizer folder and text encoder, of those among the components."""
    feeds = {encoder: tokenizer for tokenizer, encoder in family.TOKENIZERS.items()}
    return tuple((feeds[component.name], component) for component in components if component.name in feeds)


def check_tokenizers(checkpoint: Checkpoint, tokenizers: Iterable[tuple[str, Component]], cache: Path | None) -> None:
    """Raise ModelError for a tokenizer that the library cannot load, or that does not fit its text encoder. Cached."""
    for name, encoder in tokenizers:
        folder = checkpoint.folder / name
        vocabulary, positions = (
            encoder.config.get(key, default) for key, default in (("vocab_size", 49408), ("max_position_embeddings", 77))
        )
        check_tokenizer_files(checkpoint, name)
        inputs = {"files": _encoded(tokenizer_files(folder)), "vocabulary": vocabulary, "positions": positions}

        def passes(folder: Path = folder, vocabulary: int = vocabulary, positions: int = positions) -> bool:
            check_tokenizer(folder, vocabulary, positions)
            return True

        cached(cache, "tokenizer", inputs, passes)


def copy_pipeline(stage: Stage, request: Request) -> None:
    """Everything of a pipeline that is not a network: index, scheduler and the tokenizers of the chosen text encoders."""
    checkpoint, target = request.checkpoint, request.target
    for name in ("model_index.json", f"scheduler/{CONFIG}"):
        stage.write(name, read_file(checkpoint.folder / name))
    for tokenizer, _ in request.tokenizers:
        files = tokenizer_files(checkpoint.folder / tokenizer)
        for name, data in files.items():
            stage.write(f"{tokenizer}/{name}", data)

        def make(folder: Path = checkpoint.folder / tokenizer) -> Any:
            return target.engine.tokenizer_graphs(folder)

        for name, text in cached(request.options.cache, f"tokenizer-{target.engine_name}", _encoded(files), make).items():
            stage.write(f"{tokenizer}/{name}", base64.b64decode(text))


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Name -> contents of those that are there. Raises ModelError for one that cannot be read, such as a link to nothing."""
    listed = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name: read_file(folder / name) for name in _TOKENIZER_FILES if name in listed}


def _encoded(files: dict[str, bytes]) -> dict[str, str]:
    return {name: _text(data) for name, data in files.items()}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
