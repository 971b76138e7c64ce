"""The place of the output: nothing that a user has there, or near it, is lost or written into, whenever it appears."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vaefix.convert.convert import ConvertOptions, Progress, convert
from vaefix.convert.dry_run import dry_run
from vaefix.convert.output import prepare, stage_of
from vaefix.convert.writer import staged
from vaefix.runtime.artifact import MANIFEST, Artifact
from vaefix.runtime.errors import InputError, RequestError, ResourceError, VaefixError
from vaefix.runtime.progress import Activity

Tree = dict[str, tuple[int, str | bytes]]
OLD = {MANIFEST: b"old", "unet/old.bin": b"old"}
NEW = {MANIFEST: b"new", "unet/new.bin": b"new"}


def tree(path: Path) -> Tree:
    """Every name below `path`, itself included: its kind, and what it holds or points to."""
    found: Tree = {}
    for name in [path, *sorted(path.rglob("*"))] if not path.is_symlink() else [path]:
        mode = name.lstat().st_mode
        held = str(name.readlink()) if name.is_symlink() else name.read_bytes() if name.is_file() else ""
        found[name.relative_to(path).as_posix()] = mode, held
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, files: dict[str, bytes] = OLD) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def linked(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """What makes a link at a path, to what `make` makes beside it."""

    def link(path: Path) -> None:
        make(path.with_name("target"))
        path.symlink_to("target")

    return link


KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_text("precious"),
    "folder": lambda path: fill(path, {"mine.txt": b"precious"}),
    "empty folder": Path.mkdir,
    "fifo": os.mkfifo,
    "link to a file": linked(lambda path: path.write_text("precious")),
    "link to a folder": linked(lambda path: fill(path, {"mine.txt": b"precious"})),
    "link to an artifact": linked(fill),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "artifact": fill,
}
REPLACED = {"artifact", "empty folder"}


def write(output: Path, files: dict[str, bytes] = NEW, *, force: bool = False, then: Callable[[], object] = bool) -> bool:
    """One conversion of these files. then: what happens before it is published. Returns whether it was finished before."""
    with staged(output, {"of": sorted(files)}, force=force) as stage:
        finished = stage.files.keys() == files.keys()
        for name, data in files.items():
            stage.write(name, data)
        then()
    return finished


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output that does not exist, in a folder of its own."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_appears_during_a_conversion_is_kept_and_so_is_the_finished_stage(output: Path, kind: str, force: bool) -> None:
    if force and kind in REPLACED:
        write(output, force=True, then=lambda: KINDS[kind](output))
        assert files_of(output) == NEW
    else:
        with pytest.raises(RequestError, match="same command again") as error:
            write(output, force=force, then=lambda: KINDS[kind](output))
        assert error.value.source == str(output)
        assert str(stage_of(output) / "artifact") in (error.value.remedy or "")
        moved, expected = output.with_name("moved"), output.with_name("expected")
        output.rename(moved)
        shutil.rmtree(output.with_name("target"), ignore_errors=True)
        output.with_name("target").unlink(missing_ok=True)
        KINDS[kind](expected)
        assert tree(moved) == tree(expected)
        assert write(output), "only published"
    assert files_of(output) == NEW
    assert not stage_of(output).exists()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"empty folder"}))
def test_what_appears_between_the_last_look_and_the_rename_is_kept(
    output: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        monkeypatch.undo()
        KINDS[kind](output)
        return rename(source, target)

    with pytest.raises(RequestError, match="appeared meanwhile"):
        write(output, then=lambda: monkeypatch.setattr(Path, "rename", late))
    expected = output.with_name("expected")
    before = tree(output)
    shutil.rmtree(output.with_name("target"), ignore_errors=True)
    output.with_name("target").unlink(missing_ok=True)
    KINDS[kind](expected)
    assert before == tree(expected)
    assert files_of(stage_of(output) / "artifact") == NEW


def test_artifact_that_is_exchanged_for_something_else_while_it_is_replaced_is_put_back(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(output)
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        monkeypatch.undo()
        shutil.rmtree(output)
        fill(output, {"mine.txt": b"precious"})
        return rename(source, target)

    with pytest.raises(RequestError, match="is no artifact of vaefix any more"):
        write(output, force=True, then=lambda: monkeypatch.setattr(Path, "rename", late))
    assert files_of(output) == {"mine.txt": b"precious"}
    assert files_of(stage_of(output) / "artifact") == NEW


def test_old_artifact_stays_named_where_something_takes_its_place(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(output)
    rename, calls = Path.rename, []

    def late(source: Path, target: Path) -> Path:
        moved = rename(source, target)
        if not calls:
            output.write_text("precious")
        calls.append(source)
        return moved

    with pytest.raises(RequestError, match="where something else is now") as error:
        write(output, force=True, then=lambda: monkeypatch.setattr(Path, "rename", late))
    monkeypatch.undo()
    assert error.value.source == str(stage_of(output) / "replaced")
    assert output.read_text() == "precious"
    for force in (False, True):
        with pytest.raises(RequestError, match="where something else is now"):
            write(output, {"other": b""}, force=force)
    assert files_of(stage_of(output) / "replaced") == OLD
    output.unlink()
    assert write(output, force=True), "the old one was restored, then replaced"
    assert files_of(output) == NEW


def test_disk_error_of_the_rename_leaves_the_old_artifact_and_the_stage(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(output)
    rename = Path.rename

    def failing(source: Path, target: Path) -> Path:
        if source.name == "artifact":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        return rename(source, target)

    with pytest.raises(ResourceError):
        write(output, force=True, then=lambda: monkeypatch.setattr(Path, "rename", failing))
    monkeypatch.undo()
    assert files_of(output) == OLD
    assert write(output, force=True)
    assert files_of(output) == NEW


KILLED = """
import ast, os, signal, sys
from pathlib import Path
from vaefix.convert.writer import staged

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}
place, before, force = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "force"
old, new = ast.literal_eval(sys.argv[4])

def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

def armed(moment):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in CHANGES:
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for moment in range(1, 1000):
    output = place / str(moment) / "out"
    output.parent.mkdir()
    if before in ("artifact", "replaced"):
        fill(output, old)
    if before == "replaced":
        try:
            with staged(output, {}, force=True) as stage:
                for name, data in new.items():
                    stage.write(name, data)
                raise ValueError
        except ValueError:
            output.rename(output.with_name("out.partial") / "replaced")
    child = os.fork()
    if not child:
        armed(moment)
        with staged(output, {}, force=force) as stage:
            for name, data in new.items():
                stage.write(name, data)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.parametrize(
    ("before", "force"), [("nothing", ""), ("nothing", "force"), ("artifact", "force"), ("replaced", "force")]
)
def test_kill_before_any_change_of_the_disk_leaves_the_old_or_the_new_and_the_next_run_restores_it(
    tmp_path: Path, before: str, force: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", KILLED, place, before, force, repr((OLD, NEW))]
    subprocess.run(command, check=True, timeout=120)
    moments = sorted(place.iterdir(), key=lambda folder: int(folder.name))
    assert len(moments) > 15
    seen = []
    for moment in moments:
        output = moment / "out"
        there = output if output.exists() else stage_of(output) / "replaced"
        seen.append((there.name, files_of(there)))
        assert seen[-1][1] in (({}, NEW) if before == "nothing" else (OLD, NEW))
        with pytest.raises(InputError), staged(output, {"other": 1}, force=True):
            raise InputError("bad model")
        assert not stage_of(output).exists()
        assert files_of(output) == seen[-1][1]
        write(output, force=True)
        assert files_of(output) == NEW
    assert seen[-1] == ("out", NEW)
    if before != "nothing":
        assert ("replaced", OLD) in seen, "the moment between the two renames is among them"


def test_next_run_without_force_restores_as_well(output: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write(output, then=lambda: 1 / 0)
    fill(stage_of(output) / "replaced")
    with pytest.raises(RequestError, match="the output exists"):
        prepare(output, force=False)
    assert files_of(output) == OLD
    assert files_of(stage_of(output) / "artifact") == NEW


def test_conversion_that_is_refused_for_another_reason_restores_first(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write(output, then=lambda: 1 / 0)
    fill(stage_of(output) / "replaced")
    with pytest.raises(InputError):
        convert(ConvertOptions(output, tmp_path / "no-model", force=True))
    assert files_of(output) == OLD


def test_stage_whose_output_is_in_place_is_cleaned(output: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write(output, then=lambda: 1 / 0)
    (stage_of(output) / "artifact").rename(output)
    fill(stage_of(output) / "replaced")
    fill(stage_of(output) / "discarded")
    with pytest.raises(RequestError, match="the output exists"):
        prepare(output, force=False)
    assert files_of(output) == NEW
    assert not stage_of(output).exists()


def user_stage(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def stage(root: Path) -> None:
        root.mkdir()
        make(root / name)

    return stage


STAGES = {kind: make for kind, make in KINDS.items() if kind != "empty folder"} | {
    "folder with a folder of a stage's name": user_stage("artifact", lambda path: fill(path, {"mine.txt": b"precious"})),
    "folder with a file of a stage's name": user_stage("artifact", lambda path: path.write_text("precious")),
    "folder with a link of a stage's name": user_stage("lock", linked(lambda path: path.write_text("precious"))),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", STAGES)
def test_what_is_at_the_stages_name_and_not_ours_is_refused_and_kept(output: Path, kind: str, force: bool) -> None:
    STAGES[kind](stage_of(output))
    before = tree(output.parent)
    with pytest.raises(RequestError, match="not a staged conversion"):
        write(output, force=force)
    assert tree(output.parent) == before


def test_file_that_a_user_puts_into_the_stage_outlives_it(output: Path) -> None:
    write(output, then=lambda: (stage_of(output) / "mine.txt").write_text("precious"))
    assert files_of(output) == NEW
    assert files_of(stage_of(output)) == {"mine.txt": b"precious"}


def test_link_in_a_stage_is_removed_and_not_followed(output: Path, tmp_path: Path) -> None:
    fill(tmp_path / "mine", {"mine.txt": b"precious"})
    with pytest.raises(ZeroDivisionError):
        write(output, then=lambda: 1 / 0)
    shutil.rmtree(stage_of(output) / "artifact" / "unet")
    (stage_of(output) / "artifact" / "unet").symlink_to(tmp_path / "mine")
    write(output)
    assert files_of(output) == NEW
    assert files_of(tmp_path / "mine") == {"mine.txt": b"precious"}


@pytest.fixture
def options(demo_model: Path, output: Path, cache_folder: Path) -> ConvertOptions:
    """A request for the demo model's smallest component."""
    return ConvertOptions(output, demo_model, components=("vae_encoder",), precision={"*": "fp32"}, cache=cache_folder)


def test_conversion_that_could_not_publish_only_publishes_when_it_is_run_again(options: ConvertOptions) -> None:
    def appear(stage: Activity) -> None:
        if stage.what == "read back":
            options.output.write_text("precious")

    with pytest.raises(RequestError, match="same command again"):
        convert(options, Progress(appear))
    assert options.output.read_text() == "precious"
    options.output.unlink()
    stages: list[str] = []
    artifact = convert(options, Progress(lambda stage: stages.append(stage.what)))
    assert stages == ["read the model", "read back"]
    assert Artifact.load(options.output, verify=True) == artifact


def test_finished_stage_that_lost_a_file_is_completed(options: ConvertOptions) -> None:
    def appear(stage: Activity) -> None:
        if stage.what == "read back":
            options.output.write_text("precious")

    with pytest.raises(RequestError, match="same command again"):
        convert(options, Progress(appear))
    options.output.unlink()
    (stage_of(options.output) / "artifact" / "vae_encoder" / "openvino_model.bin").unlink()
    convert(options)
    Artifact.load(options.output, verify=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder like a model's, to be refused before anything in it is looked at."""
    fill(tmp_path / "model", dict.fromkeys(("model_index.json", "unet/config.json", "vae/config.json"), b"{}"))
    return tmp_path / "model"


def _snapshot(model: Path) -> Path:
    """The model as a hub keeps it: links to files elsewhere."""
    blobs, snapshot = model.with_name("blobs"), model.with_name("snapshot")
    model.rename(blobs)
    for file in blobs.rglob("*.*"):
        link = snapshot / file.relative_to(blobs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return snapshot


def _unet_elsewhere(model: Path) -> Path:
    (model / "unet").rename(model.with_name("elsewhere"))
    (model / "unet").symlink_to(model.with_name("elsewhere"))
    return model


def _plain(model: Path) -> Path:
    return model


@pytest.mark.parametrize(
    ("place", "inside"),
    [
        (_plain, lambda model: model / "out"),
        (_plain, lambda model: model / "unet" / "out"),
        (_plain, lambda model: model / "new" / "folders" / "out"),
        (_plain, lambda model: model / "vae" / ".." / "out"),
        (_plain, lambda model: model.parent / "link" / "out"),
        (_snapshot, lambda model: model / "out"),
        (_snapshot, lambda model: model / "unet" / "out"),
        (_unet_elsewhere, lambda model: model / "unet" / "out"),
        (_unet_elsewhere, lambda model: model.with_name("elsewhere") / "out"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_output_inside_the_model_is_refused_before_anything_is_written(
    model: Path, place: Callable[[Path], Path], inside: Callable[[Path], Path], force: bool
) -> None:
    model = place(model)
    model.with_name("link").symlink_to(model)
    before = tree(model.parent)
    asked = ConvertOptions(inside(model), model, force=force, cache=model.with_name("cache"))
    for options in (asked, replace(asked, precision={"*": "auto"}, budget=10**12)):
        for act in (convert, dry_run):
            with pytest.raises(RequestError, match="lies in the model") as error:
                act(options)
            assert "--output" in (error.value.remedy or "")
    assert tree(model.parent) == before


def test_model_inside_the_artifact_that_is_to_be_replaced_is_not_deleted(model: Path) -> None:
    outer = model.with_name("outer")
    fill(outer)
    model.rename(outer / "model")
    model.with_name("link").symlink_to(outer / "model")
    before = tree(outer)
    for given in (outer / "model", model.with_name("link")):
        with pytest.raises(RequestError, match="holds the model"):
            convert(ConvertOptions(outer, given, force=True))
    assert tree(outer) == before
    assert not stage_of(outer).exists()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "names no folder to make"),
        (".", "names no folder to make"),
        ("..", "names no folder to make"),
        ("folder/..", "names no folder to make"),
        ("/", "names no folder to make"),
        ("n" * 252, "the name is too long"),
        ("n" * 300, "the name is too long"),
        ("é" * 127, "the name is too long"),
        ("n/" * 3000 + "n", "too long"),
        ("a\0b", "no path"),
        ("\0/a", "no path"),
        ("\ud800", "no path"),
        ("artifact/out", "lies in another artifact"),
        ("artifact/new/out", "lies in another artifact"),
        ("file/out", "file is not a folder"),
        ("file/new/out", "file is not a folder"),
        ("loop/out", "symbolic links"),
        ("/dev/null/out", "/dev/null is not a folder"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_impossible_output_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, reason: str, force: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    fill(Path("artifact"))
    before = tree(tmp_path)
    with pytest.raises(VaefixError) as error:
        convert(ConvertOptions(Path(given), tmp_path / "no-model", force=force))
    assert reason in error.value.reason
    assert error.value.exit_code in (3, 4)
    assert error.value.remedy
    assert tree(tmp_path) == before


def test_longest_name_that_is_accepted_is_converted(tmp_path: Path) -> None:
    write(tmp_path / ("n" * 247))
    assert files_of(tmp_path / ("n" * 247)) == NEW


def test_relative_output_in_a_folder_that_was_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(RequestError, match="does not exist any more"):
        convert(ConvertOptions(Path("out"), tmp_path / "no-model"))
    assert not gone.exists()


@pytest.mark.parametrize(
    "given", [lambda folder: folder, lambda folder: Path("..") / folder.name, lambda folder: folder.parent]
)
def test_current_folder_is_never_replaced(output: Path, monkeypatch: pytest.MonkeyPatch, given: Callable[[Path], Path]) -> None:
    fill(output)
    fill(output.parent)
    (output.parent / MANIFEST).unlink()
    monkeypatch.chdir(output)
    with pytest.raises(RequestError):
        write(given(output), force=True)
    assert files_of(output) == OLD


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC])
def test_place_that_cannot_be_written_is_a_resource_error(output: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(stage_of(output)))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match="cannot write") as error:
        write(output)
    assert error.value.exit_code == 4
    assert not list(output.parent.iterdir())


def test_place_where_no_folder_can_be_made_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="No such file"):
        write(Path("/proc/vaefix-out"))


def test_stage_that_is_removed_meanwhile_is_a_resource_error(output: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"):
        write(output, then=lambda: shutil.rmtree(stage_of(output)))
    write(output)
    assert files_of(output) == NEW


def test_two_files_at_once_in_the_way_of_two_conversions_stay(output: Path) -> None:
    """The second is refused at once, the first when it publishes."""

    def second() -> None:
        output.write_text("precious")
        with pytest.raises(RequestError, match="another conversion"):
            write(output, force=True)

    with pytest.raises(RequestError, match="same command again"):
        write(output, then=second)
    assert output.read_text() == "precious"
