"""The staged folder: nothing partial under the final name, whatever ends the conversion."""

from __future__ import annotations

import errno
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vaefix.convert import writer
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.writer import staged
from vaefix.runtime.artifact import MANIFEST, Artifact, sha256_of
from vaefix.runtime.errors import InputError, InterruptError, RequestError, ResourceError


def assert_same_folder(left: Path, right: Path) -> None:
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (left, right)]
    assert names[0] == names[1]
    files = [name for name in names[0] if (left / name).is_file()]
    assert files
    _, different, unreadable = filecmp.cmpfiles(left, right, files, shallow=False)
    assert (different, unreadable) == ([], [])


@pytest.mark.slow
def test_two_conversions_are_byte_identical(demo_artifact_fp16: Artifact, demo_model: Path, tmp_path: Path) -> None:
    """One with the session's cache, one that captures everything again."""
    convert(ConvertOptions(tmp_path / "again", demo_model, cache=tmp_path / "fresh-cache"))
    assert_same_folder(tmp_path / "again", demo_artifact_fp16.folder)


def test_engines_share_a_cache_without_mixing_their_files(
    demo_artifact_fp16: Artifact, demo_model: Path, tmp_path: Path
) -> None:
    chosen, cache = ("text_encoder",), tmp_path / "cache"
    for target in ("onnx-cpu", "openvino-gpu"):
        convert(ConvertOptions(tmp_path / target, demo_model, target, components=chosen, cache=cache))
    for name in ("tokenizer", "text_encoder"):
        assert_same_folder(tmp_path / "openvino-gpu" / name, demo_artifact_fp16.folder / name)


def lines_of(journal: Path) -> int:
    """0 where there is none yet, or no more."""
    try:
        return journal.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_conversion_leaves_nothing_partial_and_resumes(
    kills: int, demo_artifact_fp16: Artifact, demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "vaefix.convert.cli", "--model", demo_model, "--output", output, "--cache", cache_folder]
    moments, journal = random.Random(0), output.with_name("out.partial") / "journal.jsonl"
    for kill in range(kills):
        written = moments.randrange(len(demo_artifact_fp16.files))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and lines_of(journal) <= written:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if output.exists():  # it was done before the signal
            assert_same_folder(output, demo_artifact_fp16.folder)
            output.rename(tmp_path / f"done-{kill}")
    subprocess.run(command, check=True, capture_output=True)
    assert_same_folder(output, demo_artifact_fp16.folder)
    assert not output.with_name("out.partial").exists()


@pytest.fixture
def stage_names(tmp_path: Path) -> tuple[Path, Path]:
    """Output and staged folder of a small write."""
    return tmp_path / "out", tmp_path / "out.partial"


class Interrupted(Exception):
    """What ends a stage in these tests."""


def interrupted(output: Path, fingerprint: dict, names: tuple[str, ...]) -> None:
    with pytest.raises(Interrupted), staged(output, fingerprint) as stage:
        for name in names:
            stage.write(name, name.encode())
        with stage.file("half.bin") as sink:
            sink.write(b"half")
            raise Interrupted


def test_complete_files_are_taken_up_and_half_ones_are_not(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    interrupted(output, {"a": 1}, ("one", "folder/two"))
    assert not output.exists()
    (root / "artifact" / "stray").write_text("not ours")
    with staged(output, {"a": 1}) as stage:
        assert set(stage.files) == {"one", "folder/two"}
        assert sorted(path.name for path in stage.folder.rglob("*") if path.is_file()) == ["one", "two"]
        with stage.file("half.bin") as sink:
            sink.write(b"whole")
    assert (output / "half.bin").read_bytes() == b"whole"
    assert not root.exists()


def test_files_of_another_request_are_discarded(stage_names: tuple[Path, Path]) -> None:
    output, _ = stage_names
    interrupted(output, {"a": 1}, ("one", "folder/two"))
    with staged(output, {"a": 2}) as stage:
        assert not stage.files
        assert not list(stage.folder.rglob("*"))
        stage.write("new", b"new")
    assert [path.name for path in output.rglob("*")] == ["new"]


def test_file_altered_between_two_attempts_is_found(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    interrupted(output, {}, ("one",))
    (root / "artifact" / "one").write_bytes(b"two")
    with pytest.raises(ResourceError, match="other bytes than were written"), staged(output, {}) as stage:
        stage.verify(full=False)
    assert not output.exists()


def test_torn_journal_line_is_ignored(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    interrupted(output, {}, ("one", "two"))
    journal = root / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    with staged(output, {}) as stage:
        assert set(stage.files) == {"one"}


def test_bad_input_removes_the_stage(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    with pytest.raises(InputError), staged(output, {}) as stage:
        stage.write("one", b"1")
        raise InputError("bad", remedy="none")
    assert not root.exists()
    assert not output.exists()


def test_full_disk_keeps_complete_files_for_the_next_attempt(
    stage_names: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, root = stage_names

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ResourceError, match="No space left") as error, staged(output, {}) as stage:
        stage.write("one", b"1")
        monkeypatch.setattr(writer.os, "fsync", full)
        stage.write("two", b"2")
    assert error.value.exit_code == 4
    assert "GiB are free" in str(error.value)
    monkeypatch.undo()
    assert not output.exists()
    with staged(output, {}) as stage:
        assert set(stage.files) == {"one"}
    assert root.parent.exists()


def test_what_cannot_fit_is_refused_before_it_is_written(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    with pytest.raises(ResourceError, match="GiB are needed") as error, staged(output, {}, needed=2**60):
        pytest.fail("staged what cannot fit")
    assert error.value.exit_code == 4
    assert not list((root / "artifact").rglob("*"))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("size", [0, 1, 4095, writer.BLOCK - 1, writer.BLOCK, writer.BLOCK + 1, 3 * writer.BLOCK + 12345])
def test_bytes_and_hash_are_those_that_were_given(
    stage_names: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, size: int, direct: bool
) -> None:
    data, cut = random.Random(size).randbytes(size), random.Random(1)
    if not direct:
        monkeypatch.setattr(writer, "_DIRECT", 0)
    with staged(stage_names[0], {}) as stage, stage.file("file") as sink:
        start = 0
        while start < size:
            piece = bytearray(data[start : start + cut.choice([1, 100, 5000, 10**6, 10**7])])
            sink.write(memoryview(piece))
            start += len(piece)
            piece[:] = bytes(len(piece))  # what a reader that reuses its buffer does
    assert (stage_names[0] / "file").read_bytes() == data
    assert stage.files["file"].sha256 == sha256_of(stage_names[0] / "file")
    assert stage.files["file"].size == size


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RequestError, match="is not a folder"), staged(tmp_path / "file" / "out", {}):
        pytest.fail("staged below a file")


def test_read_only_place_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ResourceError, match="cannot be written to") as error, staged(tmp_path / "out", {}):
        pytest.fail("staged where nothing can be written")
    assert error.value.exit_code == 4


def test_folder_of_somebody_else_is_not_taken_for_a_stage(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    root.mkdir()
    (root / "mine.txt").write_text("precious")
    with pytest.raises(RequestError, match="not a staged conversion"), staged(output, {}):
        pytest.fail("staged in a folder of somebody else")
    assert (root / "mine.txt").read_text() == "precious"


def test_second_conversion_to_the_same_output_is_refused(stage_names: tuple[Path, Path]) -> None:
    output, _ = stage_names
    with staged(output, {}) as stage:
        stage.write("one", b"1")
        with pytest.raises(RequestError, match="another conversion"), staged(output, {}):
            pytest.fail("two at once")
    assert (output / "one").read_bytes() == b"1"


def _folder(output: Path) -> None:
    output.mkdir()
    (output / "mine.txt").write_text("precious")


def _link(output: Path) -> None:
    target = output.with_name("target")
    target.mkdir()
    (target / MANIFEST).write_text("{}")
    output.symlink_to(target)


@pytest.mark.parametrize(
    "make", [_folder, _link, lambda output: output.write_text("precious"), lambda output: output.symlink_to("nowhere")]
)
def test_force_replaces_nothing_but_an_artifact(stage_names: tuple[Path, Path], make: Callable[[Path], object]) -> None:
    output, root = stage_names
    make(output)
    before = os.lstat(output).st_ino
    with pytest.raises(RequestError, match="no artifact of vaefix"), staged(output, {}, force=True):
        pytest.fail("staged in place of something else")
    assert os.lstat(output).st_ino == before
    assert not root.exists()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_go_on_and_complete_files_stay(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    with pytest.raises(InterruptError, match="stopped") as error, staged(output, {}) as stage:
        stage.write("one", b"1")
        with stage.file("two") as sink:
            sink.write(b"2" * 3 * writer.BLOCK)
            interrupt()
    assert error.value.source == str(root)
    assert "same command goes on from where it stopped" in (error.value.remedy or "")
    assert error.value.exit_code == 130
    assert not output.exists()
    with staged(output, {}) as stage:
        assert set(stage.files) == {"one"}


def test_ctrl_c_while_it_is_published_is_settled(stage_names: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    output, root = stage_names
    output.mkdir()
    (output / MANIFEST).write_text("old")
    rename = Path.rename

    def stopped(source: Path, target: Path) -> Path:
        if source.name == "artifact":
            interrupt()
        return rename(source, target)

    with pytest.raises(InterruptError), staged(output, {}, force=True) as stage:
        stage.write("one", b"1")
        monkeypatch.setattr(Path, "rename", stopped)
    assert (output / MANIFEST).read_text() == "old"
    assert (root / "artifact" / "one").read_bytes() == b"1"


STOPPED = """
import os, random, signal, sys
from pathlib import Path
from vaefix.convert.writer import BLOCK, staged

output, presses = Path(sys.argv[1]), int(sys.argv[2])
moments = random.Random(1)
data = random.Random(0).randbytes(2 * BLOCK + 12345)

def press(*_):
    global presses
    presses -= 1
    if presses:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    raise KeyboardInterrupt

for _ in range(20):
    after = moments.uniform(0.0005, 0.04)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, press)
        signal.setitimer(signal.ITIMER_REAL, after)
        try:
            with staged(output, {}) as stage:
                for name in ("one", "two"):
                    stage.write(name, data)
                signal.pause()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_at_any_moment_of_writing_does_no_harm(stage_names: tuple[Path, Path], presses: int) -> None:
    output, root = stage_names
    subprocess.run([sys.executable, "-c", STOPPED, output, str(presses)], check=True, timeout=120)
    data = random.Random(0).randbytes(2 * writer.BLOCK + 12345)
    assert not output.exists()
    with staged(output, {}) as stage:
        stage.verify(full=True)
        for name in ("one", "two"):
            stage.write(name, data)
    assert {path.name: path.read_bytes() == data for path in output.iterdir()} == {"one": True, "two": True}
    assert not root.exists()


def test_file_that_reads_back_wrong_is_written_again_by_the_next_attempt(stage_names: tuple[Path, Path]) -> None:
    output, root = stage_names
    interrupted(output, {}, ("one",))
    (root / "artifact" / "one").write_bytes(b"two")
    with pytest.raises(ResourceError, match="other bytes than were written"), staged(output, {}) as stage:
        stage.verify(full=False)
    with staged(output, {}) as stage:
        stage.write("one", b"one")
    assert (output / "one").read_bytes() == b"one"


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"{}\n[1]\n", b'{}\n"x"\n', b"\xff\xfe", b'{}\n["a", {"b": 1}]\n'])
def test_damaged_journal_only_costs_time(stage_names: tuple[Path, Path], damage: bytes) -> None:
    output, root = stage_names
    interrupted(output, {}, ("one",))
    (root / "journal.jsonl").write_bytes(damage)
    with staged(output, {}) as stage:
        assert not stage.files
        stage.write("one", b"one")
    assert (output / "one").read_bytes() == b"one"


def test_file_of_the_model_that_cannot_be_read_is_not_called_a_full_disk(
    stage_names: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(PermissionError), staged(stage_names[0], {}):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "model" / "unet.safetensors"))
