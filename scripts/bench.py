"""Measure what vaefix costs, and whether it keeps what the project promises: `convert`, `policy`, `precision` or `validate`.

Exit code 1 when a limit is exceeded. The result is also written to a JSON file of that name in WORK.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import bench_convert
import bench_policy
import bench_precision
import bench_validate

BENCHMARKS = {"convert": bench_convert, "policy": bench_policy, "precision": bench_precision, "validate": bench_validate}


def main() -> int:
    """Exit code 0 if every limit is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    benchmarks = parser.add_subparsers(dest="what", required=True)
    for name, benchmark in BENCHMARKS.items():
        options = benchmarks.add_parser(name, description=benchmark.__doc__)
        options.add_argument("--work", type=Path, default=Path("bench-output"), help="scratch folder, and of the result")
        benchmark.add_arguments(options)
        options.set_defaults(benchmark=benchmark)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    result = arguments.benchmark.result(arguments)
    result.save(arguments.work / f"{arguments.what}.json")
    result.show()
    return 0 if all(limit.kept for limit in result.limits) else 1


if __name__ == "__main__":
    raise SystemExit(main())
