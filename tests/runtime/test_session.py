"""Sessions are found by the artifact's target, and importing the runtime stays light."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError
from vaefix.runtime.session import EngineOptions, open_session


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("target", ["openvino-cpu", "openvino-gpu", "openvino-npu"])
def test_the_engine_is_the_first_word_of_the_target(target: str, demo_artifact_fp32: Artifact) -> None:
    session = open_session(replace(demo_artifact_fp32, target=target), "vae_decoder")
    assert (session.inputs, session.outputs, session.device) == (("latent_sample",), ("sample",), "CPU")


def test_onnx_targets_run_in_onnx_runtime(demo_artifact_onnx_cpu: Artifact) -> None:
    for target in ("onnx-cpu", "onnx-cuda"):
        session = open_session(replace(demo_artifact_onnx_cpu, target=target), "vae_decoder")
        assert (session.inputs, session.outputs, session.device) == (("latent_sample",), ("sample",), "CPU")


@pytest.mark.parametrize("target", ["onnxx-cuda", "", "../session-cpu", "__init__-cpu"])
def test_an_engine_without_a_backend_is_refused_naming_those_that_exist(target: str, demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(ArtifactError, match="this vaefix runs: onnx, openvino"):
        open_session(replace(demo_artifact_fp32, target=target), "unet")


def test_an_unknown_component_is_refused(demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(ArtifactError, match="no component vae .*vae_decoder"):
        open_session(demo_artifact_fp32, "vae")


@pytest.mark.parametrize(
    "device", ["CPU", "cpu", {"vae_decoder": "CPU"}, {"*": "GPU.7", "vae_decoder": "CPU"}, {"unet": "GPU.7"}, {}]
)
def test_a_device_is_chosen_for_all_or_by_component(device: object, demo_artifact_fp32: Artifact) -> None:
    assert open_session(demo_artifact_fp32, "vae_decoder", device).device == "CPU"


@pytest.mark.parametrize("device", ["GPU.7", {"*": "GPU.7"}, {"*": "CPU", "vae_decoder": "GPU.7"}])
def test_a_device_that_is_not_there_is_answered_with_those_that_are(device: object, demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(DeviceError, match=r"vae_decoder: device GPU.7 is not there \(there: .*CPU"):
        open_session(demo_artifact_fp32, "vae_decoder", device)


@pytest.mark.parametrize(
    ("target", "device", "remedy"),
    [
        ("openvino-gpu", "CUDA", "--target onnx-cuda"),
        ("openvino-cpu", "cuda:1", "--target onnx-cuda"),
        ("onnx-cpu", "GPU.1", "--target openvino-gpu"),
        ("onnx-cuda", {"*": "CUDA", "unet": "npu"}, "--target openvino-gpu"),
    ],
)
def test_a_device_of_the_other_engine_says_which_target_is_for_it_before_any_engine_is_loaded(
    target: str, device: object, remedy: str, demo_artifact_fp32: Artifact
) -> None:
    code = f"""
import sys
from dataclasses import replace
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import DeviceError
from vaefix.runtime.session import check_devices, open_session
artifact = replace(Artifact.load({str(demo_artifact_fp32.folder)!r}), target={target!r})
for ask in (lambda: open_session(artifact, "unet", {device!r}), lambda: check_devices(artifact, ["unet"], {device!r})):
    try:
        ask()
    except DeviceError as error:
        print(error)
print(*(name for name in ("torch", "openvino", "onnxruntime") if name in sys.modules))
"""
    lines = _python(code).splitlines()
    assert len(lines) == 5
    assert lines[:2] == lines[2:4]
    assert f"the artifact is made for {target}" in lines[0]
    assert remedy in lines[1]
    assert lines[4] == ""


def test_a_device_for_an_unknown_component_is_refused(demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(RequestError, match="given for vea,") as caught:
        open_session(demo_artifact_fp32, "unet", {"vea": "GPU"})
    assert "vae_decoder" in str(caught.value.remedy)


def test_a_setting_for_an_unknown_component_is_refused(demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(RequestError, match="a setting is given for vea, ") as caught:
        open_session(demo_artifact_fp32, "unet", options=EngineOptions(settings={"vea": {"NUM_STREAMS": "1"}}))
    assert "vae_decoder" in str(caught.value.remedy)


def test_a_component_s_own_settings_win_over_those_of_all() -> None:
    options = EngineOptions(settings={"*": {"a": "1", "b": "2"}, "unet": {"b": "3"}})
    assert options.settings_of("unet") == {"a": "1", "b": "3"}
    assert options.settings_of("vae_decoder") == {"a": "1", "b": "2"}
    assert EngineOptions().settings_of("unet") == {}


@pytest.mark.parametrize(
    ("artifact", "device"),
    [("demo_artifact_fp32", "GPU.7"), ("demo_artifact_onnx_cpu", "GPU"), ("demo_artifact_onnx_cuda", "NPU")],
)
def test_a_component_falls_back_to_the_cpu_only_when_that_is_allowed_and_says_so(
    artifact: str, device: str, request: pytest.FixtureRequest
) -> None:
    loaded = request.getfixturevalue(artifact)
    options = EngineOptions(settings={"*": {"NO_SUCH": "1"}}, allow_fallback=True)
    with pytest.warns(
        UserWarning, match=f"^vae_decoder runs on the CPU, without CUDA graphs and engine options: .*{device}"
    ) as warned:
        session = open_session(loaded, "vae_decoder", device, options)
    assert len(warned) == 1
    assert (session.device, session.precision) == ("CPU", "f32")
    with pytest.raises(DeviceError, match=f"vae_decoder: .*{device}"):
        open_session(loaded, "vae_decoder", device)


def test_a_damaged_artifact_is_not_fallen_back_from(demo_artifact_fp32: Artifact) -> None:
    with pytest.raises(ArtifactError):
        open_session(demo_artifact_fp32, "vae", "GPU.7", EngineOptions(allow_fallback=True))


@pytest.mark.parametrize(
    ("artifact", "missing", "device", "install"),
    [
        ("demo_artifact_fp32", "openvino", "CPU", "'vaefix[openvino]'"),
        ("demo_artifact_onnx_cpu", "onnxruntime", "CPU", "'vaefix[onnx]'"),
        ("demo_artifact_onnx_cpu", "onnx", "CPU", "onnx"),
        ("demo_artifact_onnx_cuda", "onnxruntime", "CUDA:1", "'vaefix[cuda]'"),
    ],
)
def test_a_missing_engine_is_named_with_the_command_that_installs_it(
    artifact: str, missing: str, device: str, install: str, request: pytest.FixtureRequest
) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import DeviceError
from vaefix.runtime.session import open_session
try:
    open_session(Artifact.load({str(request.getfixturevalue(artifact).folder)!r}), "unet", {device!r})
except DeviceError as error:
    print(error)
"""
    assert _python(code) == f"{missing} is not installed\n  remedy: pip install {install}\n"


def test_half_an_onnxruntime_is_taken_out_before_a_whole_one_is_installed(
    demo_artifact_onnx_cuda: Artifact, tmp_path: Path
) -> None:
    """What stays when one of its two builds is removed from beside the other: a folder without a module."""
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            import importlib.machinery
            return importlib.machinery.PathFinder.find_spec(name, [{str(tmp_path)!r}])
sys.meta_path.insert(0, Hidden())
from vaefix.convert.targets import find_target
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import DeviceError
from vaefix.runtime.session import open_session
for use in (
    lambda: open_session(Artifact.load({str(demo_artifact_onnx_cuda.folder)!r}), "unet", "CUDA"),
    lambda: find_target("onnx-cuda"),
):
    try:
        use()
    except DeviceError as error:
        print(error.reason, error.remedy, sep="; ")
"""
    line = "onnxruntime is not installed; pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'vaefix[cuda]'\n"
    assert _python(code) == line * 2


@pytest.mark.parametrize("module", ["artifact", "errors", "session", "pipeline", "guard", "command", "cli"])
def test_importing_the_runtime_loads_no_engine(module: str) -> None:
    heavy = ("torch", "openvino", "onnxruntime", "diffusers", "transformers")
    loaded = _python(f"import sys, vaefix.runtime.{module}; print(*(name for name in {heavy} if name in sys.modules))")
    assert loaded.strip() == ""
