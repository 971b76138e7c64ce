"""What was given to look at: an artifact, or the model that one would be made of. No weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType

from vaefix.convert.cache import versions
from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.families import find_family
from vaefix.convert.pipeline import check_scheduler_file, check_tokenizer_files
from vaefix.runtime.artifact import MANIFEST, Artifact
from vaefix.runtime.boundary import as_vaefix_error
from vaefix.runtime.errors import ArtifactError, ModelError, VaefixError

from .engines import Engine, runs

_ENGINES = {"openvino": "openvino", "onnx": "onnxruntime"}
"""Beginning of a target's name -> the engine that runs its artifacts."""
_GRAPHS = ("*/openvino_model.xml", "*/model.onnx")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Part:
    """A component of an artifact, or a part of a model that has weights.

    kind: precision, or the class.  size: bytes of its files.  detail: what else there is to say.
    """

    name: str
    kind: str
    size: int
    detail: str


@dataclass(frozen=True)
class Subject:
    """What was found. kind: `artifact`, `model`, or `nothing` that vaefix knows.

    made: of what it is: the target and family of an artifact, the class of a model's pipeline.
    size: bytes of its files, of a model those of its weights.
    devices: of an artifact: device -> component -> what it is computed in there, None where it does not run.
    tools: of an artifact: packages whose versions differ: those that made it, and those here.
    unlisted: files of an artifact that its manifest does not know.
    problems: why it cannot be used.
    """

    kind: str
    path: str
    made: str = ""
    size: int = 0
    parts: tuple[Part, ...] = ()
    devices: Mapping[str, Mapping[str, str | None]] | None = None
    tools: Mapping[str, tuple[str, str | None]] | None = None
    unlisted: tuple[str, ...] = ()
    problems: tuple[VaefixError, ...] = ()


def examine(given: str, engines: Iterable[Engine], on_read: Callable[[int, int], None]) -> Subject:
    """Look at it. on_read: is told how many bytes of how many have been read, where that takes time."""
    folder = Path(given)
    if (folder / MANIFEST).exists():
        return _artifact(folder, engines, on_read)
    if (folder / "model_index.json").exists() and not _has_graphs(folder):
        return _model(folder)
    return Subject("nothing", given, problems=(_unknown(folder, given),))


def _has_graphs(folder: Path) -> bool:
    return any(chain.from_iterable(map(folder.glob, _GRAPHS)))


def _unknown(folder: Path, given: str) -> VaefixError:
    if not folder.exists():
        hub = _HUB_ID.fullmatch(given) is not None
        remedy = "nothing is fetched from the hub here: give the model's folder" if hub else "check the path"
        return ModelError("no such folder", source=given, remedy=remedy)
    if not folder.is_dir():
        return ModelError("a single file, not a folder", source=given, remedy="give an artifact, or a diffusers folder")
    if (folder / "journal.jsonl").exists():
        remedy = "give the command that began it once more: it goes on from here"
        return ArtifactError("a conversion that has not ended", source=given, remedy=remedy)
    if _has_graphs(folder):
        reason = f"graphs without {MANIFEST}: another program made them, or it was lost"
        return ArtifactError(reason, source=given, remedy="convert the model with vaefix convert")
    reason = f"neither an artifact ({MANIFEST}) nor a diffusers model (model_index.json)"
    return ModelError(reason, source=given, remedy="give the folder that holds one of these files")


def _artifact(folder: Path, engines: Iterable[Engine], on_read: Callable[[int, int], None]) -> Subject:
    try:
        artifact = Artifact.read(folder)
    except VaefixError as error:
        return Subject("artifact", str(folder), problems=(error,))
    size, done = sum(entry.size for entry in artifact.files.values()), 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        on_read(done, size)

    problems = tuple(artifact.faults(verify=True, on_read=read))
    engine = _ENGINES.get(artifact.target.partition("-")[0])
    executions = [(name, entry.execution) for name, entry in artifact.components.items()]
    here = versions()
    return Subject(
        kind="artifact",
        path=str(folder),
        made=f"{artifact.family} for {artifact.target}",
        size=size,
        parts=tuple(_components(artifact)),
        devices={device: by for found in engines if found.name == engine for device, by in runs(found, executions).items()},
        tools={name: (made, here.get(name)) for name, made in artifact.tools.items() if here.get(name) != made},
        unlisted=tuple(_unlisted(artifact)),
        problems=problems,
    )


def _components(artifact: Artifact) -> Iterator[Part]:
    for name, entry in artifact.components.items():
        size = sum(file.size for path, file in artifact.files.items() if path.startswith(f"{name}/"))
        yield Part(name, entry.precision, size, f"made for {entry.execution}{', repaired' if entry.repaired else ''}")


def _unlisted(artifact: Artifact) -> Iterator[str]:
    for path in sorted(artifact.folder.rglob("*")):
        name = path.relative_to(artifact.folder).as_posix()
        if not path.is_dir() and name != MANIFEST and name not in artifact.files:
            yield name


def _model(folder: Path) -> Subject:
    problems: list[VaefixError] = []
    try:
        checkpoint = Checkpoint.open(folder)
    except (VaefixError, OSError) as error:
        return Subject("model", str(folder), problems=(as_vaefix_error(error),))
    names = list(_weighted(checkpoint))
    try:
        family = find_family(checkpoint)
        problems += _beside(checkpoint, family)
        names = [component.part for component in family.components(checkpoint)]
    except (VaefixError, OSError) as error:
        problems.append(as_vaefix_error(error))
    parts = []
    for name in dict.fromkeys(names):
        try:
            parts.append(_part(checkpoint, name))
        except (VaefixError, OSError) as error:
            problems.append(as_vaefix_error(error))
    made, size = str(checkpoint.index.get("_class_name")), sum(part.size for part in parts)
    return Subject("model", str(folder), made, size, tuple(parts), problems=tuple(problems))


def _beside(checkpoint: Checkpoint, family: ModuleType) -> Iterator[VaefixError]:
    """What is wrong with the files of the scheduler and of each tokenizer."""
    checks: list[Callable[[Checkpoint], None]] = [check_scheduler_file]
    checks += [partial(check_tokenizer_files, name=name) for name in family.TOKENIZERS]
    for check in checks:
        try:
            check(checkpoint)
        except (VaefixError, OSError) as error:
            yield as_vaefix_error(error)


def _weighted(checkpoint: Checkpoint) -> Iterator[str]:
    """The parts that seem to have weights, of a model of any family."""
    for name, entry in checkpoint.index.items():
        inside = isinstance(entry, list) and Path(name).name == name and name != ".."
        if inside and (checkpoint.folder / name / "config.json").exists():
            yield name


def _part(checkpoint: Checkpoint, name: str) -> Part:
    """Raises VaefixError for weights that are missing, pickled or damaged."""
    tensors = checkpoint.tensors(name).values()
    files = len({tensor.file for tensor in tensors})
    types = sorted({tensor.dtype for tensor in tensors})
    entry = checkpoint.index.get(name)
    kind = str(entry[-1]) if isinstance(entry, list) and entry else ""
    detail = f"{len(tensors)} tensors in {files} file{'s' if files > 1 else ''}, {', '.join(types)}"
    return Part(name, kind, sum(tensor.nbytes for tensor in tensors), detail)
