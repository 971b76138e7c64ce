"""Whatever JSON may hold, it is read or refused by name; no other exception leaves the reader."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaefix.runtime.documents import parse, read_bytes, read_object
from vaefix.runtime.errors import ArtifactError

DEEP = 200_000
REFUSED = {
    "empty": (b"", "not valid JSON"),
    "cut": (b'{"a": [1', "not valid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "lists in lists": (b"[" * DEEP + b"]" * DEEP, "nested too deep"),
    "objects in objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deep"),
    "deep, but not for Python": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested too deep"),
    "5000 digits": (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    "a list": (b"[]", "not a JSON object"),
    "null": (b"null", "not a JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_object_is_refused_by_name(case: str, tmp_path: Path) -> None:
    data, reason = REFUSED[case]
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_object(file, ArtifactError, remedy="convert again")
    assert caught.value.source == str(file)
    assert len(caught.value.reason) < 200


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "[[{}, 1, -1e999]]"])
def test_what_is_not_finite_is_read_only_where_it_may_be(text: str) -> None:
    data = f'{{"a": {text}}}'.encode()
    assert "a" in parse(data, ArtifactError, source="x", remedy="")
    with pytest.raises(ArtifactError, match="NaN or Infinity"):
        parse(data, ArtifactError, source="x", remedy="", finite=True)


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("../blobs/gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    reasons = {
        "pipe": "a pipe.*not a file",
        "absent": "missing",
        "dangling": "link to ../blobs/gone",
        "loop": "unreadable",
        "folder": "unreadable",
    }
    reasons |= {"folder/x/y": "missing", "zero\0": "unreadable"}
    if os.geteuid():
        (tmp_path / "locked").write_bytes(b"{}")
        (tmp_path / "locked").chmod(0)
        reasons["locked"] = "unreadable"
    for name, reason in reasons.items():
        with pytest.raises(ArtifactError, match=reason):
            read_bytes(tmp_path / name, ArtifactError, remedy="")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text('[]{}",:0123456789.eE+-nulINtraf\\ud8', max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        parse(data, ArtifactError, source="x", remedy="")
    except ArtifactError as error:
        assert error.source == "x"
