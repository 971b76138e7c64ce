"""What `scripts/bench precision` does in processes of their own, their memory limited. Linux only.

    bench_worker.py LIMIT reference MODEL COMPONENT PIXELS CASE.npz      compute inputs and PyTorch's outputs in float32
    bench_worker.py LIMIT run ARTIFACT COMPONENT CASE.npz RESULT.json    load, run and compare a component; a `Run`
    bench_worker.py LIMIT weights MODEL ARTIFACT COMPONENT RESULT.json   decode and compare its weights; a `WeightError`
    bench_worker.py LIMIT command COMMAND...                             become the command

LIMIT is in bytes, or `unlimited`. It is RLIMIT_DATA: the kernel counts every private writable mapping against it, touched or
not, and refuses more. A weights file is mapped shared or read only, so its pages are apart.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SAMPLE_SECONDS = 0.005


@dataclass(frozen=True)
class Run:
    """A component loaded and run once. Memory in bytes; anonymous memory is what the process had not before it loaded it.

    loaded: anonymous, after loading.  loading, running: its peak meanwhile, and in the run.
    mapped: pages of the weights file that are in memory after the run, when every weight has been used.
    resident: anonymous memory after the run, and these.
    seconds: of the run.  psnr_db, relative: of the worst output that a pipeline uses, see `validate.metrics.Difference`.
    """

    loaded: int
    loading: int
    running: int
    mapped: int
    resident: int
    seconds: float
    psnr_db: float
    relative: float


def reference(model: str, component: str, pixels: str, case: str) -> None:
    """Save what the untouched model computes in float32 on seeded inputs, and these."""
    from vaefix.convert.checkpoint import Checkpoint
    from vaefix.validate.inputs import PictureSize
    from vaefix.validate.references import ModelReference

    size = PictureSize(int(pixels), int(pixels))
    found = ModelReference(Checkpoint.open(model)).case(component, [0], size, "fp32")
    arrays = {f"feed/{name}": value for name, value in found.feeds[0].items()}
    arrays |= {f"expected/{name}": value[0] for name, value in found.expected.untouched.items() if _is_used(name, found)}
    with Path(case).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _is_used(output: str, found: Any) -> bool:
    """Whether a pipeline of SDXL reads it: of an encoder, the last layer but one and the projected embedding."""
    layers = sum(name.startswith("hidden_states") for name in found.expected.untouched)
    return not layers or output in (f"hidden_states.{layers - 2}", "text_embeds")


def run(artifact: str, component: str, case: str, result: str) -> None:
    """Load the component with the runtime's low-memory options, run it and compare its outputs; saves a `Run`."""
    from vaefix.runtime.artifact import Artifact
    from vaefix.runtime.session import EngineOptions, open_session
    from vaefix.validate.metrics import compare

    opened = Artifact.load(artifact)
    _import_engine(opened.target)
    feeds, expected = _case(Path(case))
    gc.collect()
    before = memory()["RssAnon"]
    with peak_anonymous() as loading:
        session = open_session(opened, component, options=EngineOptions(low_memory=True))
    loaded = memory()["RssAnon"] - before
    with peak_anonymous() as running:
        start = time.perf_counter()
        outputs = session.run(feeds)
        seconds = time.perf_counter() - start
    mapped = mapped_pages(max((opened.folder / component).iterdir(), key=lambda file: file.stat().st_size))
    resident = memory()["RssAnon"] - before - sum(array.nbytes for array in outputs.values()) + mapped
    differences = [compare(value, outputs[name]) for name, value in expected.items()]
    if any(difference.nonfinite_actual for difference in differences):
        raise SystemExit(f"{component}: not every output is finite")
    worst = min(differences, key=lambda difference: difference.psnr_db)
    found = Run(
        loaded=loaded,
        loading=loading() - before,
        running=running() - before,
        mapped=mapped,
        resident=resident,
        seconds=seconds,
        psnr_db=worst.psnr_db,
        relative=worst.relative,
    )
    Path(result).write_text(json.dumps(asdict(found)), encoding="utf-8")


def _case(file: Path) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Inputs and PyTorch's outputs, by name."""
    with np.load(file) as arrays:
        both = [
            {name.partition("/")[2]: arrays[name] for name in arrays if name.startswith(kind)} for kind in ("feed", "expected")
        ]
    return both[0], both[1]


def _import_engine(target: str) -> None:
    """Before memory is read, so that libraries do not count."""
    __import__("openvino" if target.startswith("openvino") else "vaefix.runtime.backends.onnx")


def memory() -> dict[str, int]:
    """Bytes of this process that are in memory: `RssAnon`, its own, and `RssFile`, of mapped files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in lines}


def mapped_pages(file: Path) -> int:
    """Bytes of the file that this process has mapped and that are in memory."""
    count, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # a mapping begins
            inside = len(rest) > 4 and Path(rest[4]) == file.resolve()
        elif first == "Rss:" and inside:
            count += int(rest[0]) * 1024
    return count


@contextmanager
def peak_anonymous() -> Iterator[Callable[[], int]]:
    """Sample this process's anonymous memory meanwhile; afterwards the value called gives its peak."""
    peak, stop = [memory()["RssAnon"]], threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], memory()["RssAnon"])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        thread.join()
    peak[0] = max(peak[0], memory()["RssAnon"])


def weights(model: str, artifact: str, component: str, result: str) -> None:
    """Save the `WeightError` of a component of an ONNX artifact."""
    from bench_weights import weight_error

    found = weight_error(Path(model), Path(artifact), component)
    Path(result).write_text(json.dumps(asdict(found)), encoding="utf-8")


def main() -> None:
    """Limit this process, then do as it is told."""
    limit, mode, *arguments = sys.argv[1:]
    if limit != "unlimited":
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    if mode == "command":
        os.execvp(arguments[0], arguments)
    _MODES[mode](*arguments)


_MODES: Mapping[str, Callable[..., None]] = {"reference": reference, "run": run, "weights": weights}

if __name__ == "__main__":
    main()
