"""The ending of the name is the format."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vaefix.runtime.errors import RequestError, ResourceError
from vaefix.validate.outputs import check_report
from vaefix.validate.report import write
from vaefix.validate.verdict import Verdict


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("out.html", "<!DOCTYPE html>"),
        ("out.json", "{"),
        ("out.md", "### "),
        ("out.xml", "<?xml "),
        ("OUT.HTML", "<!DOCTYPE html>"),
    ],
)
def test_the_ending_picks_the_format(full: Verdict, hostile: Verdict, tmp_path: Path, name: str, start: str) -> None:
    for verdict in (full, hostile):
        write(verdict, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


@pytest.mark.parametrize("name", ["out.pdf", "out", ".html"])
def test_another_ending_is_refused_naming_those_that_exist(full: Verdict, tmp_path: Path, name: str) -> None:
    for attempt in (lambda path: check_report(path), lambda path: write(full, path)):
        with pytest.raises(RequestError, match=r"\.html, \.json, \.md, \.xml") as caught:
            attempt(tmp_path / name)
        assert caught.value.exit_code == 2
    assert not [*tmp_path.iterdir()]


def test_a_place_that_cannot_be_written_is_named_before_the_work(full: Verdict, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for path in (tmp_path / "missing" / "out.html", tmp_path / "folder.html"):
        for attempt in (lambda path: check_report(path), lambda path: write(full, path)):
            with pytest.raises(RequestError, match="no file can be written there") as caught:
                attempt(path)
            assert caught.value.source == str(path)


def test_a_full_disk_is_named(full: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ResourceError, match="No space left"):
        write(full, tmp_path / "out.json")
