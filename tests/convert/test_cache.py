"""The skeleton cache: made once, made again when damaged, never in the way."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from vaefix.convert import cache
from vaefix.convert.cache import cached, default_cache, warn_uncached
from vaefix.runtime.errors import VaefixWarning


@pytest.fixture(autouse=True)
def unsaid() -> None:
    """As in a new process."""
    warn_uncached.cache_clear()


class Maker:
    """Counts how often something is made."""

    def __init__(self, data: object) -> None:
        self.data, self.calls = data, 0

    def __call__(self) -> object:
        self.calls += 1
        return self.data


def test_entry_is_made_once_and_read_back(tmp_path: Path) -> None:
    maker = Maker({"a": [1, 2.5, None, "x"]})
    assert [cached(tmp_path, "kind", {"k": 1}, maker) for _ in range(3)] == [maker.data] * 3
    assert maker.calls == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:70], lambda b: b"", lambda b: b[:-3] + b"\xff" + b[-2:]])
def test_damaged_entry_is_made_again(tmp_path: Path, damage) -> None:
    maker = Maker({"a": "b" * 50})
    cached(tmp_path, "kind", {}, maker)
    path = next(tmp_path.iterdir())
    path.write_bytes(damage(path.read_bytes()))
    assert cached(tmp_path, "kind", {}, maker) == maker.data
    assert cached(tmp_path, "kind", {}, maker) == maker.data
    assert maker.calls == 2


def test_other_inputs_and_other_versions_are_other_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached(tmp_path, "kind", {"k": 1}, Maker(1)) == 1
    assert cached(tmp_path, "kind", {"k": 2}, Maker(2)) == 2
    monkeypatch.setattr(cache, "versions", lambda: {"torch": "99"})
    assert cached(tmp_path, "kind", {"k": 1}, Maker(3)) == 3


def unwritable_file(folder: Path, _: pytest.MonkeyPatch) -> Path:
    folder.write_text("precious")
    return folder


def below_a_file(folder: Path, _: pytest.MonkeyPatch) -> Path:
    folder.write_text("precious")
    return folder / "cache"


def in_no_home(folder: Path, _: pytest.MonkeyPatch) -> Path:
    return Path("/proc/no-home/.cache/vaefix")


def read_only(number: int) -> Callable[[Path, pytest.MonkeyPatch], Path]:
    def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number), str(folder))

        folder.mkdir()
        monkeypatch.setattr(Path, "write_bytes", refuse)
        return folder

    return make


@pytest.mark.parametrize(
    "make", [unwritable_file, below_a_file, in_no_home, *map(read_only, (errno.EROFS, errno.EACCES, errno.ENOSPC))]
)
def test_folder_that_cannot_be_written_only_costs_time_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, pytest.MonkeyPatch], Path]
) -> None:
    folder = make(tmp_path / "cache", monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [cached(folder, "kind", {"k": key}, Maker(key)) for key in range(3)] == [0, 1, 2]
    (warning,) = said
    assert warning.category is VaefixWarning
    assert str(folder) in str(warning.message)
    assert "nothing is cached" in str(warning.message)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_folder_keeps_nothing_and_says_so() -> None:
    with pytest.warns(VaefixWarning, match="no cache folder .* nothing is cached"):
        assert cached(None, "kind", {}, Maker(7)) == 7


def test_entry_that_cannot_be_completed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(VaefixWarning, match="No space left"):
        assert cached(tmp_path, "kind", {}, Maker(7)) == 7
    assert not list(tmp_path.iterdir())


def test_read_only_cache_that_holds_everything_is_used_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker(7)
    cached(tmp_path, "kind", {}, maker)
    read_only(errno.EROFS)(tmp_path / "other", monkeypatch)
    assert cached(tmp_path, "kind", {}, maker) == 7
    assert maker.calls == 1


def test_user_without_a_home_has_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: str) -> Path:
        raise RuntimeError("could not determine the home directory")

    for answer in (no_home, lambda _: Path("~/.cache/vaefix")):  # of newer and of older versions
        monkeypatch.setattr(platformdirs, "user_cache_path", answer)
        assert default_cache() is None
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: Path("/home/somebody/.cache/vaefix"))
    assert default_cache() == Path("/home/somebody/.cache/vaefix")
