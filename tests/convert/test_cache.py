"""The skeleton cache: made once, made again when damaged, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaefix.convert import cache
from vaefix.convert.cache import cached


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


def test_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert cached(tmp_path / "file" / "cache", "kind", {}, Maker(7)) == 7
