"""What `vaefix doctor` says of an installation and a machine, whole and broken."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vaefix.doctor import engines, machine
from vaefix.doctor.engines import Asked, Device, Engine, runs
from vaefix.doctor.packages import broken, doubtful, missing_extras, packages
from vaefix.runtime import cuda

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lay a package before all others, as far as its metadata goes; code: of its module, if it has one."""

    def lay(name: str, version: str, *requirements: str, code: str | None = None) -> None:
        folder = tmp_path / "site"
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in ("openvino", "onnx", "cuda")]
        metadata.write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requirements), ""]))
        if code is not None:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(folder)

    return lay


def test_it_names_packages_engines_devices_memory_and_disk(doctor: Doctor) -> None:
    code, text = doctor()
    assert code == 0
    for said in (
        "transformers",
        "openvino",
        "onnxruntime",
        "CPU",
        "bf16",
        "available",
        "the cache, ",
        "free",
        "nothing is broken",
    ):
        assert said in text


def test_json_is_one_object_that_says_the_same(doctor: Doctor) -> None:
    code, text = doctor("--json")
    found = json.loads(text)
    assert code == 0
    assert found["broken"] == []
    assert found["subject"] is None
    assert all(package["known"] for package in found["packages"] if package["version"])
    assert {engine["name"] for engine in found["engines"]} == {"openvino", "onnxruntime"}
    for engine in found["engines"]:
        assert engine["devices"][0]["name"] == "CPU"
        assert engine["devices"][0]["executes"]["fp16"] == "f32", "a CPU computes fp16 artifacts in float32"
        assert engine["fault"] is None
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert [disk["what"] for disk in found["disks"]] == ["the working directory", "the cache", "temporary files"]
    assert all(disk["free"] > 0 and disk["writable"] for disk in found["disks"])


def test_it_imports_no_torch_and_no_engine(tmp_path: Path) -> None:
    code = """
import sys
from vaefix.doctor.cli import app
try:
    app([])
finally:
    loaded = {"torch", "openvino", "onnxruntime", "diffusers", "transformers"} & sys.modules.keys()
    print(sorted(loaded), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_torch_is_asked_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch, doctor: Doctor) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda name: name == "torch")
    code, text = doctor("--torch", "--json")
    (torch,) = json.loads(text)["engines"]
    assert code == 0
    assert torch["fault"] is None
    assert torch["devices"][0]["name"] == "cpu"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('libopenvino.so.2640: cannot open shared object file')", "libopenvino.so.2640"),
        ("raise OSError('libtbb.so.12: cannot open shared object file')", "libtbb.so.12"),
        ("raise RuntimeError('no plugins.xml')", "no plugins.xml"),
        ("import os; os.abort()", "crashes"),
        ("import sys; sys.exit(7)", "ended with code 7"),
        ("import sys; sys.exit()", "ended with code 0"),
        ("print('hello')", "has no attribute 'Core'"),
        ("class Core:\n    available_devices = ['GPU']", "get_property"),
        ("syntax error", "SyntaxError"),
    ],
)
def test_a_broken_engine_is_a_line(code: str, said: str, install: Callable[..., None]) -> None:
    install("openvino", "2026.4.1", code=code)
    openvino, onnxruntime = Asked(["openvino", "onnxruntime"]).answers()
    assert openvino.devices == ()
    assert openvino.fault is not None
    assert said in openvino.fault
    assert len(openvino.fault.splitlines()) == 1
    assert onnxruntime.fault is None, "the other one is asked nevertheless"


def test_a_broken_engine_is_exit_code_3(install: Callable[..., None], doctor: Doctor) -> None:
    install("openvino", "2026.4.1", code="raise ImportError('libopenvino.so: cannot open shared object file')")
    code, text = doctor()
    assert code == 3
    assert "broken: openvino: installed, but cannot be used: ImportError: libopenvino.so: cannot open" in text
    assert "Traceback" not in text
    assert "1 broken, see above" in text


def test_an_engine_that_hangs_is_a_line(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("openvino", "2026.4.1", code="import time; time.sleep(600)")
    monkeypatch.setattr(engines, "_PATIENCE", 1)
    (openvino,) = Asked(["openvino"]).answers()
    assert openvino.fault == "no answer within 1 s"


def test_a_file_of_the_working_directory_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    (onnxruntime,) = Asked(["onnxruntime"]).answers()
    assert onnxruntime.fault is None
    assert [device.name for device in onnxruntime.devices][:1] == ["CPU"]


def test_an_engine_that_is_not_installed_is_not_asked() -> None:
    assert Asked(["no_such_engine"]).answers() == ()


def test_both_builds_of_onnxruntime_are_broken_and_said_how_to_mend(install: Callable[..., None], doctor: Doctor) -> None:
    install("onnxruntime-gpu", "1.31.1")
    code, text = doctor()
    assert code == 3
    assert "broken: onnxruntime and onnxruntime-gpu: they are installed into the same folder" in text
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in text


@pytest.mark.parametrize("version", ["3.0", "99.0", "99.0.dev1"])
def test_a_version_that_is_not_known_to_work_is_a_warning(version: str, install: Callable[..., None], doctor: Doctor) -> None:
    install("transformers", version)
    code, text = doctor("--json")
    found = json.loads(text)
    assert code == 0
    assert f"transformers {version} is " in found["doubtful"][0]["reason"]
    assert "known to work" in found["doubtful"][0]["reason"]
    assert [package["known"] for package in found["packages"] if package["name"] == "transformers"] == [False]


def test_a_build_for_the_cpu_and_a_preview_within_the_range_are_known(install: Callable[..., None]) -> None:
    install("vaefix", "0.1.0", "one>=2.6", "two>=1", "three>=1")
    install("one", "2.13.0+cpu")
    install("two", "1.5.0rc1")
    install("three", "0.9")
    assert [(package.name, package.known) for package in packages()] == [("one", True), ("two", True), ("three", False)]


def test_what_is_needed_and_absent_is_broken(install: Callable[..., None]) -> None:
    install("vaefix", "0.1.0", "no-such-package>=3", "not-here>=2 ; extra == 'openvino'")
    (error,) = broken(packages())
    assert (error.source, error.remedy) == ("no-such-package", "pip install 'no-such-package>=3'")
    assert missing_extras(packages()) == {"openvino": "pip install 'vaefix[openvino]'"}


def test_metadata_that_makes_no_sense_is_survived(install: Callable[..., None]) -> None:
    install("vaefix", "0.1.0", "engine>=1", "odd")
    install("engine", "strange")
    install("odd", "1.0", "engine>=2", "?? no requirement")
    assert [error.source for error in doubtful(packages())] == ["installation", "odd"]


def test_packages_that_want_other_versions_of_each_other_are_a_warning(install: Callable[..., None]) -> None:
    install("vaefix", "0.1.0", "engine", "engine-tokenizers")
    install("engine", "2025.1")
    install("engine-tokenizers", "2026.4", "engine~=2026.4", "unknown>9", "engine>9999 ; extra == 'onnx'")
    (error,) = doubtful(packages())
    assert error.source == "engine-tokenizers"
    assert "wants engine~=2026.4, here is 2025.1" in error.reason


@pytest.mark.parametrize(
    ("installed", "commands"),
    [
        ((), ["openvino", "onnx", "cuda"]),
        (("openvino", "onnx", "onnxruntime"), ["cuda"]),
        (("onnx", "onnxruntime-gpu"), ["openvino"]),
    ],
)
def test_an_extra_that_is_not_installed_is_said_with_its_command(
    installed: tuple[str, ...], commands: list[str], install: Callable[..., None]
) -> None:
    needs = ("openvino ; extra == 'openvino'", "onnx ; extra == 'onnx' or extra == 'cuda'")
    install("vaefix", "0.1.0", *needs, "onnxruntime ; extra == 'onnx'", "onnxruntime-gpu ; extra == 'cuda'")
    there = tuple(replace(package, version="1.0" if package.name in installed else None) for package in packages())
    found = missing_extras(there)
    assert list(found) == commands
    assert ("uninstall" in found.get("cuda", "")) == ("onnxruntime" in installed)


class _Core:
    """OpenVINO's Core with one device."""

    def __init__(self, *able: str) -> None:
        self.properties = {
            "OPTIMIZATION_CAPABILITIES": able,
            "FULL_DEVICE_NAME": "Arc",
            "GPU_DEVICE_TOTAL_MEM_SIZE": 16 * 10**9,
        }

    def get_property(self, device: str, name: str) -> Any:
        return self.properties[name]


@pytest.mark.parametrize(
    ("name", "able", "executes", "note"),
    [
        ("CPU", ("FP32", "INT8"), ("f32", "f32", None, "f32"), None),
        ("CPU", ("FP32", "BF16", "FP16"), ("f32", "f32", "bf16", "f32"), None),
        ("GPU", ("FP32", "FP16", "INT8", "GPU_HW_MATMUL"), ("f32", "f16", None, "f16"), "with matrix units (XMX)"),
        ("GPU.1", ("FP32",), ("f32", None, None, None), None),
        ("NPU", ("FP16", "INT8"), (None, None, None, None), "no target of vaefix"),
    ],
)
def test_what_a_device_of_openvino_computes_in(
    name: str, able: tuple[str, ...], executes: tuple[str | None, ...], note: str | None
) -> None:
    device = engines._openvino_device(_Core(*able), name)
    assert tuple(device.executes[precision] for precision in ("fp32", "fp16", "bf16", "int8")) == executes
    assert device.note == note
    assert device.memory_bytes == (16 * 10**9 if name.startswith("GPU") else None)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(cuda, "missing_library", lambda: None)
    return monkeypatch


def test_cuda_is_a_device_where_there_is_a_card(with_cuda: pytest.MonkeyPatch) -> None:
    there = [cuda.Card("H100", 80 * 10**9, (9, 0)), cuda.Card("T4", 16 * 10**9, (7, 5))]
    with_cuda.setattr(cuda, "cards", lambda: iter(there))
    found = engines._onnxruntime()
    assert [device.name for device in found.devices] == ["CPU", "CUDA", "CUDA:1"]
    assert found.devices[1].executes == {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f16"}
    assert found.devices[2].executes["bf16"] is None, "it has no bf16"
    assert found.notes == ()


def test_a_provider_that_is_listed_and_does_not_load_is_no_device(with_cuda: pytest.MonkeyPatch) -> None:
    with_cuda.setattr(cuda, "missing_library", lambda: "libcudnn.so.9: cannot open shared object file")
    found = engines._onnxruntime()
    assert [device.name for device in found.devices] == ["CPU"]
    assert found.notes == ("CUDA cannot be used: libcudnn.so.9: cannot open shared object file",)


def test_a_machine_without_nvidias_driver_has_no_cuda(with_cuda: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    with_cuda.setattr(cuda, "cards", none)
    assert engines._onnxruntime().notes == ("CUDA cannot be used: libcuda.so.1: cannot open shared object file",)


def _driver(initialised: int = 0) -> SimpleNamespace:
    """NVIDIA's, with two cards."""

    def writes(value: Callable[..., object]) -> Callable[..., int]:
        """A function of the driver: what it finds is written to its first argument."""

        def call(target: Any, *arguments: Any) -> int:
            getattr(target, "_obj", target).value = value(*arguments)
            return 0

        return call

    return SimpleNamespace(
        cuInit=lambda flags: initialised,
        cuDeviceGetCount=writes(lambda: 2),
        cuDeviceGet=writes(lambda ordinal: 100 + ordinal),
        cuDeviceGetName=writes(lambda length, device: f"card {device.value}".encode()),
        cuDeviceTotalMem_v2=writes(lambda device: 10**10),
        cuDeviceGetAttribute=writes(lambda which, device: {75: 8, 76: 6}[which]),
    )


def test_cards_are_what_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _driver())
    assert list(cuda.cards()) == [cuda.Card(f"card {number}", 10**10, (8, 6)) for number in (100, 101)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _driver(100))
    with pytest.raises(OSError, match="cuInit returned 100"):
        list(cuda.cards())


def test_what_runs_follows_what_each_component_was_made_for() -> None:
    device = Device("GPU", "Arc", {"fp32": "f32", "fp16": "f16", "bf16": None, "int8": "f16"})
    found = runs(Engine("openvino", "1", (device,)), [("unet", "bf16"), ("vae_decoder", "f32"), ("text_encoder", "f16")])
    assert found == {"GPU": {"unet": None, "vae_decoder": "f32", "text_encoder": "f16"}}


@pytest.mark.parametrize(("limit", "own", "available"), [("1000000000", "300000000", 700000000), ("1000", "9999", 0)])
def test_memory_is_that_of_the_container(
    limit: str, own: str, available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.stat").write_text(f"anon {own}\nfile 999999999\n")
    monkeypatch.setattr(machine, "_GROUPS", ((tmp_path, "memory.max", "anon"),))
    assert machine.memory() == machine.Memory(int(limit), available)


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712", "", None])
def test_without_a_limit_memory_is_that_of_the_machine(
    limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.stat").write_text("")
    monkeypatch.setattr(machine, "_GROUPS", ((tmp_path, "memory.max", "anon"),))
    found = machine.memory()
    assert 0 < found.available <= found.total
    assert found.total > 10**8


def test_a_cache_that_cannot_be_written_to_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / "cache" / name)
    code, text = doctor()
    assert code == 0
    assert f"warning: {tmp_path / 'file' / 'cache' / 'vaefix'}: the cache: cannot be written to" in text


def test_a_working_directory_that_was_deleted_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doctor: Doctor
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    code, text = doctor()
    os.chdir(tmp_path)
    assert code == 0
    assert "the working directory" in text
