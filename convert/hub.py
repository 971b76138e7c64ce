"""Where a model comes from: a folder, or a hub id whose files huggingface_hub fetches into its own cache."""

from __future__ import annotations

import re
from pathlib import Path

from vaefix.runtime.errors import ModelError
from vaefix.runtime.libraries import words_of

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WANTED = ["model_index.json", "*/*.json", "*/merges.txt"]


def is_on_the_hub(model: str | Path) -> bool:
    """Whether this is a hub id, which `locate` would fetch: no file or folder is called so."""
    return not Path(model).exists() and _HUB_ID.fullmatch(str(model)) is not None


def locate(model: str | Path, variant: str | None = None, revision: str | None = None) -> Path:
    """The model's folder. A hub id is fetched: configs, tokenizers and the safetensors of one variant, never code or pickles.

    Raises ModelError for a single file, a folder that does not exist, or an id that cannot be fetched.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        remedy = "load it with StableDiffusionXLPipeline.from_single_file, save_pretrained(...), and give that folder"
        raise ModelError("a single file, not a diffusers folder", source=path, remedy=remedy)
    if not is_on_the_hub(model):
        raise ModelError(
            "no such folder, and not a hub id", source=model, remedy="give a diffusers folder or an id like org/name"
        )
    return _fetch(str(model), variant, revision)


def _fetch(model: str, variant: str | None, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = ["*.safetensors"] if variant is None else [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"]
    skipped = ["*.fp16.safetensors", "*.fp16-*.safetensors"] if variant is None else []
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=[
                *_WANTED,
                *(f"{part}/{pattern}" for part in ("text_encoder*", "unet", "vae") for pattern in weights),
            ],
            ignore_patterns=skipped,
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"cannot be fetched from the hub ({words_of(error, whole=True)})",
            source=model,
            remedy="check the id and the network, or give a local folder",
        ) from None
    return Path(folder)
