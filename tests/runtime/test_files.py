"""A file appears under its name whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vaefix.runtime.files import is_writable, whole


@pytest.mark.parametrize("replace", [False, True])
def test_nothing_has_the_name_before_the_end(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "out.png"
    with whole(path, replace=replace) as file:
        file.write_bytes(b"half")
        assert not path.exists()
        file.write_bytes(b"whole")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"whole"


def test_what_had_the_name_stays_until_the_end_and_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"), whole(path) as file:
        file.write_bytes(b"half")
        assert path.read_bytes() == b"old"
        raise OSError(errno.ENOSPC, "full")
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == b"old"


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "old.png", tmp_path / "latest.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with whole(link) as file:
        file.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("dangling", [True, False])
def test_what_took_the_name_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, dangling: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    path = tmp_path / "out.png"
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
        with whole(tmp_path / "another.png", replace=False) as file:
            file.write_bytes(b"new")
        (tmp_path / "another.png").unlink()
    with pytest.raises(FileExistsError), whole(path, replace=False) as file:
        file.write_bytes(b"new")
        if dangling:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(b"mine")
    assert [*tmp_path.iterdir()] == [path]
    assert path.is_symlink() if dangling else path.read_bytes() == b"mine"


def test_a_file_or_its_folder_that_permits_no_writing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.png"
    assert is_writable(path)
    path.touch()
    for protected in (path, tmp_path):
        monkeypatch.setattr("os.access", lambda place, _, protected=protected: place != protected)
        assert not is_writable(path)
