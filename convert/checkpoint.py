"""A model folder and its safetensors files: headers are read and checked, tensors are read in pieces on demand.

Nothing here executes or unpickles anything. Source of the format: the safetensors specification
(8-byte little-endian header length, JSON header, contiguous data).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from vaefix.runtime.artifact import MANIFEST
from vaefix.runtime.defaults import completed
from vaefix.runtime.documents import parse, read_bytes, read_object
from vaefix.runtime.errors import CheckpointError, ModelError
from vaefix.runtime.files import require_regular

DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
"""Of safetensors; only some hold weights, see `Component.bind`."""
CHUNK = 1 << 20  # bytes read at a time: what fits in a core's cache is scanned and hashed fastest
_MAX_HEADER = 100_000_000
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_DOWNLOAD_AGAIN = "download the file again"
_COMPLETE = "give a complete diffusers folder"


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a safetensors file: `offset` is absolute, in bytes; `dtype` as the header spells it (`F16`)."""

    name: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return self.count * DTYPE_BYTES[self.dtype]

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """The tensor's bytes in pieces of `size` (a multiple of 8), all in one reused buffer.

        The buffer may be read until the next piece is asked for.

        Raises CheckpointError if the file ends early.
        """
        buffer = memoryview(bytearray(min(size, max(self.nbytes, 1))))
        left = self.nbytes
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                piece = buffer[: min(size, left)]
                filled = 0
                while filled < len(piece):
                    count = file.readinto(piece[filled:])
                    if not count:
                        raise CheckpointError(
                            f"the file ends inside tensor {self.name}", source=self.file, remedy=_DOWNLOAD_AGAIN
                        )
                    filled += count
                yield piece
                left -= len(piece)


def read_header(file: Path) -> dict[str, TensorRef]:
    """Every tensor of a safetensors file by name, in the order of their bytes.

    Raises CheckpointError for a truncated, malformed or lying header: lengths, dtypes, shapes and offsets must agree
    with each other and with the file's size, and the tensors must fill the data section without gap or overlap.
    """

    def bad(reason: str) -> CheckpointError:
        return CheckpointError(reason, source=file, remedy=_DOWNLOAD_AGAIN)

    try:
        require_regular(file)
        with file.open("rb") as stream:
            size = file.stat().st_size
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise bad(f"not a safetensors file: {size} bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(_MAX_HEADER, size - 8):
                raise bad(f"the header claims {length} bytes, the file has {size}")
            text = stream.read(length)
    except OSError as error:  # a folder or a pipe of that name, a link that leads nowhere
        raise bad(f"unreadable ({error.strerror})") from None
    header = parse(text, CheckpointError, source=file, remedy=_DOWNLOAD_AGAIN, pairs=_unique)
    if not isinstance(header, dict):
        raise bad("the header is not a JSON object")
    header.pop("__metadata__", None)
    data = 8 + length
    tensors = sorted(
        (_tensor(file, name, entry, data, bad) for name, entry in header.items()), key=lambda t: (t.offset, t.nbytes)
    )
    end = data
    for tensor in tensors:
        if tensor.offset != end:
            raise bad(f"tensor {tensor.name} begins at byte {tensor.offset - data} of the data, expected {end - data}")
        end = tensor.offset + tensor.nbytes
    if end != size:
        raise bad(f"the tensors end at byte {end}, the file has {size}")
    return {tensor.name: tensor for tensor in tensors}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _tensor(file: Path, name: str, entry: Any, data: int, bad: Any) -> TensorRef:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise bad(f"tensor {name} lacks dtype, shape or data_offsets") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise bad(f"tensor {name} has dtype {dtype}; known: {', '.join(DTYPE_BYTES)}")
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise bad(f"tensor {name} has an invalid shape or offset: {shape}, {begin}, {end}")
    tensor = TensorRef(name, file, data + begin, dtype, tuple(shape))
    if end - begin != tensor.nbytes:
        raise bad(f"tensor {name} claims {end - begin} bytes for {dtype} {shape}, which is {tensor.nbytes}")
    return tensor


def content_hash(file: Path) -> str:
    """Which file this is: the xxh3-128 of its bytes, at the speed of reading them. No signature."""
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return f"xxh3_128:{digest.hexdigest()}"


def read_config(file: Path, *, finite: bool = False) -> dict[str, Any]:
    """A JSON object of the model. Raises ModelError if it is missing or malformed, see `documents.parse`."""
    return read_object(file, ModelError, remedy=_COMPLETE, finite=finite)


def read_file(file: Path) -> bytes:
    """A small file of the model. Raises ModelError if it cannot be read."""
    return read_bytes(file, ModelError, remedy=_COMPLETE)


@dataclass(frozen=True)
class Checkpoint:
    """A diffusers folder: its `model_index.json` and, per sub-folder, a config and weights.

    variant: the infix of the weight files (`fp16` in `model.fp16.safetensors`); None takes the plain ones, or the only
    variant there is.
    """

    folder: Path
    index: Mapping[str, Any]
    variant: str | None = None

    @classmethod
    def open(cls, folder: str | Path, variant: str | None = None) -> Checkpoint:
        """Read `model_index.json`. Raises ModelError for a folder that has none, that was converted, or that carries code."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelError("no such folder", source=folder, remedy="give a diffusers folder or a hub id")
        if (folder / MANIFEST).exists():
            remedy = "give the diffusers model that it was made from"
            raise ModelError("this is a converted artifact already, not a model", source=folder, remedy=remedy)
        index = read_config(folder / "model_index.json")
        for code in sorted(folder.rglob("*.py")):
            raise ModelError("the model brings its own code, which vaefix never runs", source=code, remedy="remove the file")
        return cls(folder, index, variant)

    def config(self, part: str, file: str = "config.json") -> dict[str, Any]:
        """The configuration in sub-folder `part`, with the library's default for every key that a component's lacks.

        Raises ModelError if it is missing, malformed or asks for code.
        """
        path = self.folder / part / file
        config = read_config(path, finite=True)
        if "auto_map" in config:
            raise ModelError("asks for custom code (auto_map)", source=path, remedy="remove the entry, vaefix never runs it")
        return completed(config, part) if file == "config.json" else config

    def weight_files(self, part: str) -> list[Path]:
        """The safetensors files of sub-folder `part`, of one variant. Raises ModelError if there are none, or pickles only."""
        folder = self.folder / part
        if not folder.is_dir():
            raise ModelError(f"component {part} is missing", source=folder, remedy=_COMPLETE)
        by_variant: dict[str | None, list[Path]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            by_variant.setdefault(variant_of(file.name), []).append(file)
        if not by_variant:
            raise self._no_weights(folder)
        variant = self.variant
        if variant not in by_variant and len(by_variant) == 1 and variant is None:
            variant = next(iter(by_variant))
        if variant not in by_variant:
            there = ", ".join(sorted(v or "(plain)" for v in by_variant))
            wanted = f"no weights of variant {variant}" if variant else "no weights without a variant"
            raise ModelError(f"{wanted}; there: {there}", source=folder, remedy="choose one with --variant")
        return _complete(by_variant[variant])

    def tensors(self, part: str) -> dict[str, TensorRef]:
        """Every tensor of sub-folder `part`, files in name order, tensors in byte order.

        Raises CheckpointError if a name occurs in two files, or an index file disagrees with the files.
        """
        tensors: dict[str, TensorRef] = {}
        files = self.weight_files(part)
        for file in files:
            for name, tensor in read_header(file).items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {name} is also in {tensors[name].file.name}", source=file, remedy=_DOWNLOAD_AGAIN
                    )
                tensors[name] = tensor
        if len(files) > 1:
            _check_index(files, tensors)
        return tensors

    def _no_weights(self, folder: Path) -> ModelError:
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        if not pickles:
            return ModelError("no .safetensors file", source=folder, remedy=_COMPLETE)
        return ModelError(
            "a pickle, which can run code when loaded; vaefix reads safetensors only",
            source=folder / pickles[0],
            remedy="in a sandbox, load it with diffusers and call save_pretrained(..., safe_serialization=True)",
        )


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


def variant_of(name: str) -> str | None:
    """The variant in a weight file's name: `fp16` of `model.fp16.safetensors`, None of `model.safetensors`.

    Shards may carry it on either side of their number: `model.fp16-00001-of-00002`, `model-00001-of-00002.fp16`.
    """
    infix = _SHARD.sub("", name.removesuffix(".safetensors")).partition(".")[2]
    return infix or None


def _complete(files: list[Path]) -> list[Path]:
    """The files, all shards or one single file. Raises CheckpointError naming a shard that is missing."""
    shards = [match for file in files if (match := _SHARD.search(file.name))]
    if not shards:
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ModelError(f"several weight files: {names}", source=files[0].parent, remedy="keep the one to convert")
        return files
    there = {int(match[1]) for match in shards}
    wanted = set(range(1, int(shards[0][2]) + 1))
    if there != wanted or len(shards) != len(files):
        missing = ", ".join(str(number) for number in sorted(wanted - there)) or "none"
        raise CheckpointError(f"incomplete shards: missing {missing} of {len(wanted)}", source=files[0], remedy=_DOWNLOAD_AGAIN)
    return files


_INDEX = re.compile(r".*\.safetensors\.index(?:\.(?P<variant>[^.]+))?\.json")


def _check_index(files: list[Path], tensors: Mapping[str, TensorRef]) -> None:
    """The index of the shards, if there is one, lists exactly their tensors; only its names are used, never its paths."""
    variant = variant_of(files[0].name)
    for index in files[0].parent.glob("*.json"):
        match = _INDEX.fullmatch(index.name)
        if match is None or match["variant"] != variant:
            continue
        weight_map = read_object(index, CheckpointError, remedy=_DOWNLOAD_AGAIN).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError("no weight_map", source=index, remedy=_DOWNLOAD_AGAIN)
        for name in sorted(weight_map.keys() ^ tensors.keys()):
            where = "not in the shards" if name in weight_map else "not in the index"
            raise CheckpointError(f"tensor {name} is {where}", source=index, remedy=_DOWNLOAD_AGAIN)
