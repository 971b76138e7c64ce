"""Convert a model for every target, compare each artifact with it, and write a report of each."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# What is executed in 16 bits is emulated: a CPU would compute it in float32.
CASES = {
    "openvino-cpu-fp32": None,
    "openvino-gpu-fp16": "fp16",
    "onnx-cpu-fp32": None,
    "onnx-cuda-fp16": "fp16",
    "onnx-cuda-bf16": "bf16",
}


def compare(case: str, model: str | None, output: Path) -> int:
    """The exit code of `vaefix-validate`, or of `vaefix-convert` if that failed. Reports: OUTPUT/CASE.html and .xml."""
    target, _, precision = case.rpartition("-")
    artifact, emulated = output / case, CASES[case]
    converting = ("--target", target, "--precision", precision, "--output", artifact, "--force", *option("--model", model))
    comparing = (artifact, *option("--reference", model), *option("--emulate", emulated))
    reports = ("--report", output / f"{case}.html", "--report", output / f"{case}.xml")
    return run("convert", *converting) or run("validate", *comparing, *reports)


def option(name: str, value: str | None) -> tuple[str, ...]:
    """The words of an option, none where it has no value."""
    return () if value is None else (name, value)


def run(command: str, *arguments: object) -> int:
    """The exit code of `vaefix-COMMAND`."""
    return subprocess.call([sys.executable, "-m", f"vaefix.{command}.cli", *map(str, arguments)])


def main() -> int:
    """Exit code 0 if every case was compared and passed; 1 if one failed; else that of one which could not be compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="diffusers folder or hub id; default: the built-in demo model")
    parser.add_argument("--output", type=Path, default=Path("parity-output"), help="folder of the artifacts and reports")
    parser.add_argument("--case", action="append", choices=CASES, help="only this; repeatable")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    codes = {}
    for case in arguments.case or CASES:
        print(f"== {case}", flush=True)
        codes[case] = compare(case, arguments.model, arguments.output)
    for case, code in codes.items():
        print(f"{case}: {'passed' if code == 0 else f'exit code {code}'}")
    return 1 if 1 in codes.values() else max(codes.values())


if __name__ == "__main__":
    raise SystemExit(main())
