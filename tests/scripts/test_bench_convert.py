from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest
from bench_convert import (
    CACHED,
    COLD,
    ONNX,
    ONNX_DEMO,
    ONNX_FIRST,
    ONNX_UNET,
    PEER,
    UNET,
    Row,
    copy_seconds,
    limits,
    shown,
)
from bench_result import Limit, Result
from process_tree import Usage, measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")

MIB = 1 << 20
GRANDCHILD = "import time; held = bytearray(b'x') * (120 << 20); time.sleep(0.5)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GRANDCHILD!r}], check=True)"
BUSY = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"


def run(code: str, folder: Path) -> Usage:
    return measure([sys.executable, "-c", code], log=folder / "log", environment=os.environ)


def row(name: str, *, cpu: float = 1.0, anonymous: int = 100 * MIB, wall: float = 1.0) -> Row:
    return Row(name, Usage(0, wall, cpu, anonymous, 0, anonymous, anonymous), copy_seconds=1.0, bytes_in=1, bytes_out=1)


def test_memory_of_a_grandchild_is_counted(tmp_path: Path) -> None:
    usage = run(CHILD, tmp_path)
    assert usage.exit_code == 0
    assert 120 * MIB < usage.peak_anonymous < 180 * MIB
    assert usage.peak_resident > usage.peak_anonymous


def test_cpu_time_of_a_child_is_counted(tmp_path: Path) -> None:
    usage = run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])", tmp_path)
    assert 0.6 <= usage.cpu_seconds < 5
    assert usage.wall_seconds >= 0.6


def test_exit_code_and_output_of_a_failing_command_are_kept(tmp_path: Path) -> None:
    assert run("import sys; print('so it goes'); sys.exit(3)", tmp_path).exit_code == 3
    assert (tmp_path / "log").read_text() == "so it goes\n"


def test_copying_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * MIB)
    assert copy_seconds([source, source], tmp_path / "scratch") > 0
    assert list(tmp_path.iterdir()) == [source]


GOOD = {
    COLD: row(COLD, cpu=100),
    CACHED: row(CACHED, cpu=40),
    UNET: row(UNET),
    PEER: row(PEER, cpu=435),
    ONNX_FIRST: row(ONNX_FIRST),
    ONNX: row(ONNX, cpu=50),
    ONNX_UNET: row(ONNX_UNET),
    ONNX_DEMO: row(ONNX_DEMO),
}
BAD = [
    *(row(COLD, cpu=110), row(COLD, cpu=100, anonymous=1025 * MIB)),
    *(row(CACHED, cpu=44), row(CACHED, cpu=40, anonymous=1025 * MIB)),
    *(row(UNET, anonymous=151 * MIB), row(UNET, wall=2.1), row(UNET, wall=math.nan)),
    *(row(ONNX, cpu=53), row(ONNX, cpu=math.nan), row(ONNX, cpu=50, anonymous=1300 * MIB)),
    *(row(name, anonymous=1300 * MIB) for name in (ONNX_FIRST, ONNX_UNET, ONNX_DEMO)),
    row(PEER, cpu=399),
]


def test_limits_are_kept_by_a_good_run() -> None:
    assert all(limit.kept for limit in limits(list(GOOD.values())))


@pytest.mark.parametrize("broken", BAD, ids=lambda broken: broken.name)
def test_a_bad_row_breaks_a_limit(broken: Row) -> None:
    assert not all(limit.kept for limit in limits(list((GOOD | {broken.name: broken}).values())))


def test_shares_of_the_peer_are_judged_only_where_a_peer_ran() -> None:
    without = [row for name, row in GOOD.items() if name != PEER]
    assert len(limits(list(GOOD.values()))) == len(limits(without)) + 2


def test_nan_breaks_a_limit() -> None:
    assert Limit("", 1.0, 1.0).kept
    assert not Limit("", math.nan, 1.0).kept


def test_a_result_is_shown_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(GOOD.values())
    result = Result(rows, [shown(rows)], [Limit("kept one", 1.0, 2.0), Limit("broken one", 3.0, 2.0)])
    result.show()
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*GOOD, "kept one", "EXCEEDED"))
    result.save(tmp_path / "convert.json")
    saved = json.loads((tmp_path / "convert.json").read_text(encoding="utf-8"))
    assert saved["machine"]["cores"]
    assert [row["name"] for row in saved["rows"]] == [*GOOD]
    assert saved["limits"][1] == {"name": "broken one", "measured": 3.0, "limit": 2.0}
