"""The skeleton cache: what depends on a component's config and the library versions alone, kept for the next conversion.

An entry is a JSON file under its key, with its own sha256 in the first line; a damaged entry is made again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "diffusers", "transformers", "openvino", "openvino-tokenizers", "onnx", "numpy")


def cached(folder: Path, kind: str, inputs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """The JSON data made from `inputs` by `make`: from the cache if it is there, else made and kept.

    kind: readable beginning of the file name.  inputs: everything but the versions that the data depends on.
    """
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


def _keep(path: Path, body: bytes) -> None:
    """Write the entry whole or not at all; a cache that cannot be written only costs time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        Path(temporary).replace(path)
    except OSError:
        return
