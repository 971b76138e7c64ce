from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest
from bench import Limit, Row, copy_seconds, limits
from process_tree import Usage, measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")

MIB = 1 << 20
GRANDCHILD = "import time; held = bytearray(b'x') * (120 << 20); time.sleep(0.5)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {GRANDCHILD!r}], check=True)"
BUSY = "import time; end = time.process_time() + 0.6\nwhile time.process_time() < end: pass"


def run(code: str, folder: Path) -> Usage:
    return measure([sys.executable, "-c", code], log=folder / "log", environment=os.environ)


def row(name: str, *, cpu: float = 1.0, anonymous: int = 100 * MIB, wall: float = 1.0) -> Row:
    return Row(name, Usage(0, wall, cpu, anonymous, anonymous), copy_seconds=1.0, bytes_in=1, bytes_out=1)


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


def test_limits_are_kept_by_a_good_run_and_broken_by_each_bad_one() -> None:
    good = {"cold": row("cold", cpu=100), "cached": row("cached", cpu=40), "unet": row("unet"), "peer": row("peer", cpu=435)}
    assert all(limit.kept for limit in limits(list(good.values())))
    bad = {
        "cold": [row("cold", cpu=110), row("cold", cpu=100, anonymous=1025 * MIB)],
        "cached": [row("cached", cpu=44), row("cached", cpu=40, anonymous=1025 * MIB)],
        "unet": [row("unet", anonymous=151 * MIB), row("unet", wall=2.1), row("unet", wall=math.nan)],
        "peer": [row("peer", cpu=399)],
    }
    for name, rows in bad.items():
        for broken in rows:
            assert not all(limit.kept for limit in limits(list((good | {name: broken}).values()))), broken


def test_shares_of_the_peer_are_judged_only_where_a_peer_ran() -> None:
    rows = [row("cold"), row("cached"), row("unet")]
    assert len(limits(rows)) == 4
    assert len(limits([*rows, row("peer")])) == 6


def test_nan_breaks_a_limit() -> None:
    assert Limit("", 1.0, 1.0).kept
    assert not Limit("", math.nan, 1.0).kept
