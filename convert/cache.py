"""The skeleton cache: what depends on a component's config and the library versions alone, kept for the next conversion.

An entry is a JSON file under its key, with its own sha256 in the first line; a damaged entry is made again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from vaefix.runtime.errors import VaefixWarning
from vaefix.runtime.files import whole

_LIBRARIES = ("torch", "diffusers", "transformers", "openvino", "openvino-tokenizers", "onnx", "numpy")


def default_cache() -> Path | None:
    """The user's cache folder, whether it exists or not; None where the user has no home."""
    try:
        folder = platformdirs.user_cache_path("vaefix")
    except RuntimeError:
        return None
    return None if folder.parts[0] == "~" else folder  # what older versions of platformdirs say


def cached(folder: Path | None, kind: str, inputs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """The JSON data made from `inputs` by `make`: from the cache if it is there, else made and kept.

    folder: None keeps nothing.  kind: readable beginning of the file name.
    inputs: everything but the versions that the data depends on.
    """
    if folder is None:
        warn_uncached(None, "no home is known")
        return make()
    text = json.dumps([inputs, versions(), own_code()], sort_keys=True)
    path = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        seal, _, body = path.read_bytes().partition(b"\n")
        if seal.decode() == hashlib.sha256(body).hexdigest():
            return json.loads(body)
    except (OSError, UnicodeDecodeError):
        pass  # absent or unreadable: made again below
    data = make()
    _keep(path, json.dumps(data, separators=(",", ":")).encode())
    return data


def versions() -> dict[str, str]:
    """Installed versions of the libraries whose behaviour a skeleton depends on, without importing them."""
    found = {}
    for name in ("vaefix", *_LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def own_code() -> str:
    """A digest of this package's source: what it makes changes with it."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@cache  # said once: what other packages do to warnings makes Python forget which it has shown
def warn_uncached(folder: Path | None, reason: str) -> None:
    """Say that nothing is kept. reason: why the folder cannot be written, or why there is none."""
    where = "there is no cache folder" if folder is None else f"the cache folder {folder} cannot be written"
    warnings.warn(f"{where} ({reason}), so nothing is cached", VaefixWarning, stacklevel=2)


def _keep(path: Path, body: bytes) -> None:
    """Write the entry whole or not at all; a cache that cannot be written only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    except OSError as error:
        warn_uncached(path.parent, error.strerror or str(error))
