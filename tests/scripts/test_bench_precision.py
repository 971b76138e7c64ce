"""bench_precision.py and its workers: what is measured, what is kept, and that a limit on memory is one."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bench_generate
import bench_worker
import numpy as np
import pytest
from bench_generate import Generation, search
from bench_precision import HEADINGS, Row, Store, cells, document, limits
from bench_process import MemoryLimitReachedError, finished, worker
from bench_weights import WeightError, weight_error
from bench_worker import Run
from process_tree import Usage

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.demo import DEMO_SIZE
from vaefix.convert.synthetic import write_sdxl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")

MIB, GIB = 1 << 20, 1 << 30
USAGE = Usage(0, 10.0, 12.0, GIB, 2 * GIB, 3 * GIB, GIB)
RUN = Run(loaded=0, loading=0, resident=GIB, mapped=GIB, running=GIB, seconds=2.0, psnr_db=50.0, relative=0.01)


def row(precision: str, *, component: str = "unet", engine: str = "onnx", resident: float = 1.0, peak: float = 1.0) -> Row:
    conversion = replace(USAGE, peak_anonymous=int(peak * GIB))
    weights = WeightError(0.01, 0.004) if precision == "int8" else None
    run = replace(RUN, resident=int(resident * GIB), seconds=1.0 if precision == "fp32" else 2.0)
    return Row(engine, component, precision, 512, GIB, conversion, weights, run, 16 * GIB)


def drawn(precision: str, limit_gb: float, *, works: bool = True, engine: str = "onnx") -> Generation:
    return Generation(engine, precision, 512, limit_gb, works, USAGE)


ROWS = [row("fp32", resident=4), row("fp16", resident=2), row("int8")]
DRAWN = [drawn("fp16", 8), drawn("int8", 4), drawn("int8", 3, works=False)]


def test_limits_are_kept_by_a_good_run() -> None:
    promised = limits(ROWS, DRAWN)
    assert len(promised) == 5
    assert all(limit.kept for limit in promised)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([*ROWS, row("bf16", peak=1.3)], DRAWN),
        ([row("fp16", resident=2), row("int8", resident=1.2)], DRAWN),
        (ROWS, [drawn("fp16", 10), drawn("int8", 4)]),
        (ROWS, [drawn("fp16", 8), drawn("int8", 4, works=False)]),
    ],
)
def test_a_bad_row_breaks_a_limit(rows: list[Row], found: list[Generation]) -> None:
    assert [limit.kept for limit in limits(rows, found)].count(False) == 1


def test_what_could_not_be_measured_breaks_a_limit() -> None:
    assert not all(limit.kept for limit in limits(ROWS, DRAWN, failures=1))


def test_of_resident_weights_the_better_engine_counts() -> None:
    other = [row("fp16", engine="openvino", resident=2), row("int8", engine="openvino", resident=2)]
    assert all(limit.kept for limit in limits([*ROWS, *other], [*DRAWN, drawn("int8", 8, engine="openvino")]))


def test_what_was_measured_is_taken_up_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "precision.jsonl")
    for found in (*ROWS, replace(ROWS[0], engine="openvino", run=None), *DRAWN):
        store.add(found)
    again = Store(tmp_path / "precision.jsonl")
    assert (again.rows, again.generations) == (store.rows, store.generations)
    text = document(again)
    assert text.count("\n| ") == len(again.rows) + len(again.generations) + 3
    assert "> 16" in text, "what did not fit says so"


def test_times_are_relative_to_fp32_on_the_same_engine() -> None:
    shown = dict(zip(HEADINGS, cells(row("int8"), [*ROWS, row("fp32", engine="openvino")]), strict=True))
    assert shown["time"] == "2.00"
    assert shown["weight error"] == "1.00%, 0.40%"


def needs(least: float) -> Callable[[float], Generation]:
    return lambda limit: drawn("int8", limit, works=limit >= least)


@pytest.mark.parametrize(
    ("least", "promised", "tried"),
    [
        (0.0, None, [2]),
        (0.0, 4, [2, 4]),
        (2.2, 4, [2, 2.5, 4]),
        (2.7, 3, [2, 2.5, 3]),
        (99.0, 4, [2, 2.5, 3, 4]),
    ],
)
def test_limits_are_raised_until_one_is_enough(least: float, promised: float | None, tried: list[float]) -> None:
    found = list(search(needs(least), [2, 2.5, 3, 3.5, 4], 3, promised))
    assert [one.limit_gb for one in found] == tried
    assert bench_generate.lowest(found, "onnx", "int8") == min((limit for limit in tried if limit >= least), default=math.inf)


def test_a_limit_below_one_that_was_not_enough_does_not_count() -> None:
    found = [drawn("int8", 2), drawn("int8", 4, works=False), drawn("int8", 8)]
    assert bench_generate.lowest(found, "onnx", "int8") == 8


def limited(tmp_path: Path, code: str) -> Usage:
    return finished("it", worker(400 * MIB, "command", sys.executable, "-c", code), tmp_path / "log")


def test_the_limit_refuses_private_memory(tmp_path: Path) -> None:
    assert limited(tmp_path, f"held = bytearray({100 * MIB})").exit_code == 0
    with pytest.raises(MemoryLimitReachedError, match="MemoryError"):
        limited(tmp_path, f"held = bytearray({500 * MIB})")


def test_the_limit_leaves_pages_of_a_mapped_file_apart(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as out:
        out.truncate(500 * MIB)
    code = f"import mmap, time; file = open({str(file)!r}); held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)"
    usage = limited(tmp_path, f"{code}; held.find(b'x'); time.sleep(0.2)")
    assert usage.peak_mapped > 500 * MIB > usage.peak_private


def test_any_other_failure_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="so it goes"):
        limited(tmp_path, "raise SystemExit('so it goes')")


@pytest.fixture(scope="module")
def artifact(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("artifact") / "int8"
    options = ConvertOptions(output, demo_model, "onnx-cpu", {"*": "int8"}, components=("text_encoder",), cache=cache_folder)
    return convert(options).folder


def test_a_component_is_run_and_compared(demo_model: Path, artifact: Path, tmp_path: Path) -> None:
    case, result = tmp_path / "case.npz", tmp_path / "result.json"
    bench_worker.reference(str(demo_model), "text_encoder", "64", str(case))

    def measured() -> Run:
        bench_worker.run(str(artifact), "text_encoder", str(case), str(result))
        return Run(**json.loads(result.read_text()))

    run = measured()
    assert run.psnr_db > 40
    assert run.seconds > 0
    with np.load(case) as arrays:
        moved = {name: value + 1 if name.startswith("expected") else value for name, value in arrays.items()}
    np.savez(case, **moved)
    assert measured().psnr_db < 30


def test_weights_are_compared_with_the_models_own(demo_model: Path, artifact: Path, tmp_path: Path) -> None:
    error = weight_error(demo_model, artifact, "text_encoder")
    assert 0.001 < error.relative < 0.01
    assert error.largest <= 0.5 / 127 * 1.01
    write_sdxl(tmp_path, DEMO_SIZE, seed=1)
    assert weight_error(tmp_path, artifact, "text_encoder").relative > 1
