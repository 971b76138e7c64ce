"""scripts/parity: every case is converted and compared as it will be run, and the worst outcome is the script's."""

from __future__ import annotations

from pathlib import Path

import parity
import pytest


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 1), 1), ((3, 1), 1), ((3, 0), 3), ((0, 4), 4)], ids=lambda value: str(value)
)
def test_the_worst_outcome_counts(
    codes: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = dict(zip(("onnx-cpu-fp32", "onnx-cuda-bf16"), codes, strict=True))
    cases = [word for case in outcome for word in ("--case", case)]
    monkeypatch.setattr("sys.argv", ["parity", "--output", str(tmp_path / "out"), *cases])
    monkeypatch.setattr(parity, "compare", lambda case, model, output: outcome[case])
    assert parity.main() == expected
    assert capsys.readouterr().out.count("passed") == codes.count(0)


def test_what_executes_in_16_bits_is_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: dict[str, tuple[str, ...]] = {}

    def run(command: str, *arguments: object) -> int:
        commands[command] = tuple(map(str, arguments))
        return 0

    monkeypatch.setattr(parity, "run", run)
    for case in parity.CASES:
        assert parity.compare(case, "model", tmp_path) == 0
        target, precision = commands["convert"][1], commands["convert"][3]
        assert f"{target}-{precision}" == case
        emulated = "--emulate" in commands["validate"]
        assert emulated == (precision != "fp32")
        if emulated:
            assert commands["validate"][commands["validate"].index("--emulate") + 1] == precision
        assert commands["validate"][:3] == (str(tmp_path / case), "--reference", "model")


def test_what_is_not_converted_is_not_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parity, "run", lambda command, *_: {"convert": 3, "validate": 0}[command])
    assert parity.compare("onnx-cpu-fp32", None, tmp_path) == 3


def test_the_commands_are_really_run(tmp_path: Path) -> None:
    assert parity.run("validate", tmp_path / "nowhere") == 3
    assert parity.run("convert", "--target", "nothing", "--output", tmp_path / "out") == 2
