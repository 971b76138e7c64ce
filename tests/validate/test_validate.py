"""validate.py: a faithful artifact passes; every kind of damage fails, under the name of what was damaged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.runtime.artifact import MANIFEST, Artifact
from vaefix.runtime.errors import ArtifactError, DeviceError, InputError, ModelError, RequestError
from vaefix.runtime.progress import Activity
from vaefix.validate.budgets import component_budget
from vaefix.validate.comparing import compared
from vaefix.validate.emulate import EmulatedSession, Mode
from vaefix.validate.ranges import FP16_MAX
from vaefix.validate.subject import open_subject
from vaefix.validate.validate import ValidateOptions, validate
from vaefix.validate.verdict import Comparison, Verdict

COMPONENTS = {"text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"}
Damage = Callable[[np.ndarray], None]
EditWeight = Callable[[str, str, Damage], None]
EditText = Callable[[str, str, str], None]


def only(artifact: Artifact, reference: Path, *components: str, emulate: str | None = None) -> Verdict:
    """Compare some components on one seed."""
    options = ValidateOptions(artifact.folder, reference, components=components, generation=False, seeds=(0,), emulate=emulate)
    return validate(options)


def failed(verdict: Verdict) -> set[str]:
    return with_status(verdict, "failed")


def with_status(verdict: Verdict, status: str) -> set[str]:
    return {comparison.component for comparison in verdict.comparisons if comparison.status == status}


def of_kind(verdict: Verdict, kind: str) -> list[Comparison]:
    return [comparison for comparison in verdict.comparisons if comparison.kind == kind]


# --------------------------------------------------------------------------------------------------- what must pass


@pytest.fixture
def artifact(request: pytest.FixtureRequest) -> Artifact:
    """The artifact whose fixture is the parameter."""
    value: Artifact = request.getfixturevalue(request.param)
    return value


@pytest.mark.parametrize(
    "artifact", [pytest.param("demo_artifact_fp32", marks=pytest.mark.slow), "demo_artifact_onnx_cpu"], indirect=True
)
def test_the_fp32_artifact_equals_pytorch(artifact: Artifact, demo_model: Path) -> None:
    verdict = validate(ValidateOptions(artifact.folder, demo_model))
    assert verdict.exit_code == 0, failed(verdict)
    parity = of_kind(verdict, "parity")
    assert {comparison.component for comparison in parity} == COMPONENTS | {"generation"}
    assert {comparison.component for comparison in of_kind(verdict, "config")} == COMPONENTS
    for comparison in parity:
        assert comparison.difference is not None
        limit = 1e-3 if comparison.component == "generation" else 2e-5
        assert comparison.difference.max_abs <= limit, comparison


@pytest.mark.parametrize(
    "artifact", [pytest.param("demo_artifact_fp16", marks=pytest.mark.slow), "demo_artifact_onnx_cuda"], indirect=True
)
def test_the_repaired_fp16_artifact_passes_as_a_16_bit_gpu_runs_it(artifact: Artifact, demo_model: Path) -> None:
    announced: list[Activity] = []
    verdict = validate(ValidateOptions(artifact.folder, demo_model, emulate="fp16", seeds=(0,)), announced.append)
    assert verdict.exit_code == 0, failed(verdict)
    assert {comparison.component for comparison in of_kind(verdict, "emulated")} == COMPONENTS | {"generation"}
    assert {activity.part for activity in announced if activity.part} == COMPONENTS | {"generation"}
    exact = {comparison.output: comparison.difference for comparison in of_kind(verdict, "parity")}["sample"]
    emulated = {comparison.output: comparison.difference for comparison in of_kind(verdict, "emulated")}["sample"]
    assert exact is not None
    assert emulated is not None
    assert emulated.rms > 100 * exact.rms, "the emulation did not round anything"


@pytest.mark.slow
def test_the_bf16_artifact_passes_without_a_repair(demo_artifact_onnx_bf16: Artifact, demo_model: Path) -> None:
    assert not any(entry.repaired for entry in demo_artifact_onnx_bf16.components.values())
    verdict = validate(ValidateOptions(demo_artifact_onnx_bf16.folder, demo_model, emulate="bf16", seeds=(0,)))
    assert verdict.exit_code == 0, failed(verdict)
    for kind in ("storage", "emulated"):
        assert {comparison.component for comparison in of_kind(verdict, kind)} >= COMPONENTS


def test_a_device_is_compared_in_what_it_computes_in(demo_artifact_onnx_cuda: Artifact, demo_model: Path) -> None:
    options = ValidateOptions(demo_artifact_onnx_cuda.folder, demo_model, ("unet",), generation=False, device="CPU", seeds=(0,))
    (comparison,) = of_kind(validate(options), "hardware")
    assert comparison.status == "passed"
    assert comparison.budget == component_budget("hardware", 1, "fp32")


# --------------------------------------------------------------------------------------------------- what must fail


@pytest.mark.parametrize("target", [pytest.param("openvino-gpu", marks=pytest.mark.slow), "onnx-cuda"])
def test_without_its_repair_the_decoder_fails_the_emulation_alone(
    target: str, demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    chosen = ("vae_decoder",)
    artifact = convert(
        ConvertOptions(tmp_path / "sick", demo_model, target, components=chosen, repair="never", cache=cache_folder)
    )
    verdict = only(artifact, demo_model, "vae_decoder", emulate="fp16")
    assert {comparison.status for comparison in of_kind(verdict, "parity")} == {"passed"}
    (emulated,) = of_kind(verdict, "emulated")
    assert emulated.status == "failed"
    assert emulated.difference is not None
    assert emulated.difference.nonfinite_actual == emulated.difference.count
    assert "will overflow" in emulated.failures
    assert verdict.exit_code == 1


@pytest.mark.slow
def test_what_overflows_only_without_fused_kernels_is_at_risk(
    demo_model: Path, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulation of fused kernels is played by the repaired decoder's, which is finite."""
    options = ConvertOptions(tmp_path / "repaired", demo_model, components=("vae_decoder",), cache=cache_folder)
    repaired, sick = convert(options), convert(replace(options, output=tmp_path / "sick", repair="never"))
    graph = repaired.folder / repaired.component("vae_decoder").model

    def emulated(path: Path, mode: Mode = "each", *, ranges: bool = False) -> EmulatedSession:
        return EmulatedSession(graph if mode == "fused" else path, mode, ranges=ranges)

    monkeypatch.setattr("vaefix.validate.components.EmulatedSession", emulated)
    (comparison,) = of_kind(only(sick, demo_model, "vae_decoder", emulate="fp16"), "emulated")
    assert comparison.status == "failed"
    assert any(reason.startswith("at risk") for reason in comparison.failures)


def swap_channels(weight: np.ndarray) -> None:
    weight[[0, 1]] = weight[[1, 0]]


def drop(weight: np.ndarray) -> None:
    weight[:] = 0


def decode_and_draw(artifact: Artifact, reference: Path) -> Verdict:
    """Compare the decoder and a generation of two steps."""
    options = ValidateOptions(artifact.folder, reference, components=("vae_decoder",), steps=2, seeds=(0,))
    return validate(options)


@pytest.mark.slow
def test_damage_shows_in_the_damaged_component_and_in_the_picture(
    copied: Artifact, demo_model: Path, edit_weight: EditWeight
) -> None:
    edit_weight("vae_decoder", "decoder.conv_out.weight", swap_channels)
    verdict = decode_and_draw(copied, demo_model)
    results = {(comparison.component, comparison.output): comparison.status for comparison in verdict.comparisons}
    assert results == {
        ("vae_decoder", "config.json"): "passed",
        ("vae_decoder", "sample"): "failed",
        **{("generation", name): "passed" for name in ("encoder_hidden_states", "text_embeds", "time_ids", "timestep")},
        ("generation", "trajectory"): "passed",
        ("generation", "latents"): "passed",
        ("generation", "picture"): "failed",
        ("generation", "encoded"): "failed",
    }


@pytest.mark.slow
def test_an_all_zero_output_fails_and_so_does_its_picture(copied: Artifact, demo_model: Path, edit_weight: EditWeight) -> None:
    edit_weight("vae_decoder", "decoder.conv_out.weight", drop)
    edit_weight("vae_decoder", "decoder.conv_out.bias", drop)
    verdict = decode_and_draw(copied, demo_model)
    assert failed(verdict) == {"vae_decoder", "generation"}
    assert verdict.exit_code == 1


@pytest.mark.slow
def test_a_wrong_scaling_factor_fails_the_config_and_the_picture(
    copied: Artifact, demo_model: Path, edit_text: EditText
) -> None:
    edit_text("vae_decoder/config.json", "0.13025", "0.18215")
    verdict = decode_and_draw(copied, demo_model)
    assert failed(verdict) == {"vae_decoder", "generation"}
    (config,) = of_kind(verdict, "config")
    assert config.failures == ("scaling_factor is 0.18215, the reference has 0.13025",)


@pytest.mark.slow
def test_a_wrong_schedule_fails_the_generation(copied: Artifact, demo_model: Path, edit_text: EditText) -> None:
    edit_text("scheduler/scheduler_config.json", "0.012", "0.013")
    assert failed(decode_and_draw(copied, demo_model)) == {"generation"}


@pytest.mark.slow
def test_a_schedule_of_other_steps_is_no_success(copied: Artifact, demo_model: Path, edit_text: EditText) -> None:
    """Heun's takes two where Euler's takes one."""
    edit_text("model_index.json", "EulerDiscreteScheduler", "HeunDiscreteScheduler")
    edit_text("scheduler/scheduler_config.json", "EulerDiscreteScheduler", "HeunDiscreteScheduler")
    verdict = decode_and_draw(copied, demo_model)
    assert failed(verdict) == {"generation"}
    assert with_status(verdict, "not compared") == {"generation"}, "the trajectories have other lengths"
    assert verdict.exit_code == 1
    assert verdict.steps == ()


@pytest.mark.slow
def test_a_picture_that_cannot_be_emulated_is_no_success(
    demo_artifact_fp16: Artifact, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("no rounding survives")

    monkeypatch.setattr("vaefix.validate.drawing.emulated_in", fail)
    options = ValidateOptions(demo_artifact_fp16.folder, demo_model, ("vae_encoder",), steps=1, seeds=(0,), emulate="fp16")
    verdict = validate(options)
    (drawn,) = [comparison for comparison in of_kind(verdict, "emulated") if comparison.component == "generation"]
    assert "no rounding survives" in str(drawn.obstacle)
    assert verdict.exit_code == 3
    assert len(verdict.pictures) == 2, "the others are shown all the same"


@pytest.mark.slow
def test_steps_and_pictures_are_those_of_the_generation(demo_artifact_fp16: Artifact, demo_model: Path) -> None:
    options = ValidateOptions(demo_artifact_fp16.folder, demo_model, ("vae_encoder",), steps=3, seeds=(0,), emulate="fp16")
    verdict = validate(options)
    assert len(verdict.steps) == 3
    assert all(step.relative < 1e-5 for step in verdict.steps)
    assert [*verdict.pictures] == ["PyTorch in fp32", "artifact in fp32", "artifact in emulated fp16"]
    first = verdict.pictures["PyTorch in fp32"]
    for picture in verdict.pictures.values():
        assert picture.shape == (64, 96, 3)
        assert np.abs(picture.astype(int) - first).mean() < 1
    assert np.ptp(first) > 50, "a picture of one colour would agree with anything"


@pytest.mark.slow
def test_every_prompt_is_drawn_with_every_seed(demo_artifact_fp16: Artifact, demo_model: Path) -> None:
    options = ValidateOptions(
        demo_artifact_fp16.folder, demo_model, ("vae_encoder",), steps=1, seeds=(3, 4), prompts=("a cat", "a cat")
    )
    verdict = validate(options)
    pictures = [item.output for item in verdict.comparisons if item.output.startswith("picture")]
    assert pictures == [f"picture, prompt {number}, seed {seed}" for seed in (3, 4) for number in (1, 2)]
    assert verdict.exit_code == 0, failed(verdict)


@pytest.mark.slow
def test_a_generation_is_drawn_on_the_device_too(demo_artifact_onnx_cuda: Artifact, demo_model: Path) -> None:
    options = ValidateOptions(
        demo_artifact_onnx_cuda.folder, demo_model, ("vae_encoder",), steps=2, seeds=(0,), device="CPU", emulate="fp16"
    )
    verdict = validate(options)
    assert verdict.exit_code == 0, failed(verdict)
    kinds = [item.kind for item in verdict.comparisons if item.output == "picture"]
    assert kinds == ["parity", "emulated", "hardware"]
    assert [*verdict.pictures] == ["PyTorch in fp32", "artifact in fp32", "artifact in emulated fp16", "artifact on CPU"]
    for item in verdict.comparisons:
        assert (item.difference is not None and item.difference.ssim is not None) == (item.output == "picture")


def test_a_device_that_was_chosen_is_named(demo_artifact_fp32: Artifact, demo_model: Path) -> None:
    options = ValidateOptions(demo_artifact_fp32.folder, demo_model, ("vae_encoder",), False, seeds=(0,), device="AUTO")
    (chosen,) = of_kind(validate(options), "hardware")
    (named,) = of_kind(validate(replace(options, device="CPU")), "hardware")
    assert chosen.warnings == ("AUTO ran it on CPU in f32",)
    assert named.warnings == ()


def test_what_executes_in_another_type_than_the_emulated_is_a_warning(
    demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    components, precision = ("text_encoder", "vae_encoder"), {"*": "fp16", "text_encoder": "bf16"}
    options = ConvertOptions(tmp_path / "mixed", demo_model, "onnx-cuda", precision, components=components, cache=cache_folder)
    verdict = only(convert(options), demo_model, *components, emulate="fp16")
    assert verdict.exit_code == 0, failed(verdict)
    warned = {item.component: item.warnings for item in verdict.comparisons if item.warnings}
    assert warned == {"text_encoder": ("executes in bf16, so it was not emulated in fp16",)}


@pytest.mark.slow
def test_a_device_that_computes_in_f32_is_held_to_the_stored_weights(
    demo_artifact_onnx_bf16: Artifact, demo_model: Path
) -> None:
    options = ValidateOptions(demo_artifact_onnx_bf16.folder, demo_model, ("vae_encoder",), steps=1, seeds=(0,), device="CPU")
    verdict = validate(options)
    assert verdict.exit_code == 0, failed(verdict)
    assert {item.component for item in of_kind(verdict, "hardware")} == {"vae_encoder", "generation"}


@pytest.mark.slow
def test_a_black_picture_of_a_16_bit_gpu_fails_the_generation(demo_model: Path, cache_folder: Path, tmp_path: Path) -> None:
    sick = convert(ConvertOptions(tmp_path / "sick", demo_model, repair="never", cache=cache_folder))
    options = ValidateOptions(sick.folder, demo_model, ("vae_encoder",), steps=1, seeds=(0,), emulate="fp16")
    verdict = validate(options)
    results = {item.kind: item.status for item in verdict.comparisons if item.output == "picture"}
    assert results == {"parity": "passed", "emulated": "failed"}
    assert not verdict.pictures["artifact in emulated fp16"].any()


@pytest.mark.slow
def test_a_layer_close_to_the_end_of_fp16_is_a_warning(copied: Artifact, demo_model: Path, edit_weight: EditWeight) -> None:
    healthy = only(copied, demo_model, "vae_encoder", emulate="fp16")
    assert not any(item.warnings for item in healthy.comparisons)
    session = EmulatedSession(copied.folder / copied.component("vae_encoder").model, ranges=True)
    session.run({"sample": np.ones((1, 3, 64, 96), np.float32)})
    conv_in = next(layer for layer in session.ranges if layer.layer == "encoder.conv_in")

    def enlarge(weight: np.ndarray) -> None:
        weight *= 2 ** np.floor(np.log2(FP16_MAX / 2 / conv_in.absmax))

    edit_weight("vae_encoder", "encoder.conv_in.weight", enlarge)
    (emulated,) = of_kind(only(copied, demo_model, "vae_encoder", emulate="fp16"), "emulated")
    assert emulated.difference is not None
    assert not emulated.difference.nonfinite_actual
    (warning,) = emulated.warnings
    assert re.match(r"headroom [123]\.\d: encoder\.", warning)


def test_ranges_that_were_asked_for_and_cannot_be_measured_are_no_success(
    demo_artifact_fp16: Artifact, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArtifactError("no layers")

    monkeypatch.setattr("vaefix.validate.components.trace", fail)
    options = ValidateOptions(demo_artifact_fp16.folder, demo_model, ("vae_encoder",), False, seeds=(0,), ranges=True)
    verdict = validate(options)
    (comparison,) = of_kind(verdict, "ranges")
    assert comparison.obstacle == "no layers"
    assert verdict.exit_code == 3


@pytest.fixture(scope="module")
def float32_model(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with weights that fp16 cannot hold exactly."""
    folder = Path(shutil.copytree(demo_model, tmp_path_factory.mktemp("float32") / "model"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.manual_seed(0)
    save_file({name: value.float() * (1 + 1e-3 * torch.rand(value.shape)) for name, value in load_file(file).items()}, file)
    return folder


def test_what_storing_costs_is_told_apart_from_what_is_wrong(float32_model: Path, cache_folder: Path, tmp_path: Path) -> None:
    artifact = convert(ConvertOptions(tmp_path / "unet", model=float32_model, components=("unet",), cache=cache_folder))
    verdict = only(artifact, float32_model, "unet")
    assert verdict.exit_code == 0, failed(verdict)
    (parity,), (storage,) = of_kind(verdict, "parity"), of_kind(verdict, "storage")
    assert parity.difference is not None
    assert storage.difference is not None
    assert storage.difference.relative > 30 * parity.difference.relative


def test_a_reference_compared_with_itself_fails(
    demo_artifact_fp32: Artifact, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaefix.validate.components._run", lambda session, feeds: case.expected.stored)
    options = ValidateOptions(demo_artifact_fp32.folder, demo_model, ("text_encoder",), False, seeds=(0,))
    case = open_subject(options).reference.case("text_encoder", options.seeds, options.size, "fp32")
    verdict = validate(options)
    assert failed(verdict) == {"text_encoder"}
    assert all("compared with itself" in str(item.failures) for item in of_kind(verdict, "parity"))


# ----------------------------------------------------------------------------------------- what could not be compared


def test_agreeing_on_a_constant_proves_nothing() -> None:
    outputs = {"sample": np.zeros((1, 3, 8, 8), np.float32)}
    (comparison,) = compared("vae_decoder", "emulated", (outputs, outputs), component_budget("emulated", 1, "fp16"))
    assert comparison.status == "not compared"
    (comparison,) = compared(
        "vae_decoder", "emulated", (outputs, {"sample": outputs["sample"] + 1}), component_budget("emulated", 1, "fp16")
    )
    assert comparison.status == "failed"


def test_a_reference_that_is_not_finite_proves_nothing(demo_artifact_fp16: Artifact, demo_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_model, tmp_path / "model"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_out.bias"][0] = torch.nan
    save_file(tensors, file)
    verdict = only(demo_artifact_fp16, folder, "vae_decoder")
    (parity,) = of_kind(verdict, "parity")
    assert parity.status == "not compared"
    assert parity.obstacle is not None
    assert "reference itself" in parity.obstacle
    assert verdict.exit_code == 3


def test_a_reference_without_its_tokenizer_is_refused(demo_artifact_fp32: Artifact, demo_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_model, tmp_path / "model"))
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"merges\.txt"):
        validate(ValidateOptions(demo_artifact_fp32.folder, folder, ("text_encoder",), steps=1, seeds=(0,)))


def test_layers_without_names_are_no_success(copied: Artifact, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EmulatedSession, "ranges", property(lambda _: (), lambda *_: None), raising=False)
    options = ValidateOptions(copied.folder, demo_model, ("vae_encoder",), False, seeds=(0,), ranges=True)
    verdict = validate(options)
    assert with_status(verdict, "not compared") == {"vae_encoder"}
    assert verdict.exit_code == 3


def test_a_device_that_is_not_there_is_refused_before_the_work(demo_artifact_fp16: Artifact, demo_model: Path) -> None:
    options = ValidateOptions(demo_artifact_fp16.folder, demo_model, ("vae_encoder",), False, seeds=(0,), device="GPU.7")
    with pytest.raises(DeviceError, match=r"GPU\.7"):
        validate(options)


def test_a_component_that_cannot_be_run_is_reported_and_the_others_are_compared(
    copied: Artifact, demo_model: Path, edit_text: EditText
) -> None:
    edit_text("vae_decoder/openvino_model.xml", "<layers>", "<layer>")
    verdict = only(copied, demo_model, "vae_encoder", "vae_decoder")
    assert {comparison.component for comparison in verdict.comparisons if comparison.status == "not compared"} == {
        "vae_decoder"
    }
    assert {comparison.component for comparison in of_kind(verdict, "parity") if comparison.status == "passed"} == {
        "vae_encoder"
    }
    assert verdict.exit_code == 3


def test_a_generation_that_was_asked_for_and_lacks_a_component_is_no_success(copied: Artifact, demo_model: Path) -> None:
    components = {"vae_encoder": copied.component("vae_encoder")}
    (copied.folder / MANIFEST).write_bytes(replace(copied, components=components).manifest())
    verdict = validate(ValidateOptions(copied.folder, demo_model, seeds=(0,)))
    assert with_status(verdict, "passed") == {"vae_encoder"}
    assert with_status(verdict, "not compared") == {"generation"}
    assert verdict.exit_code == 3


def test_emulating_fp16_where_nothing_executes_in_it_is_no_success(demo_artifact_fp32: Artifact, demo_model: Path) -> None:
    verdict = only(demo_artifact_fp32, demo_model, "vae_encoder", emulate="fp16")
    assert {comparison.status for comparison in of_kind(verdict, "emulated")} == {"not compared"}
    assert verdict.exit_code == 3


def test_emulating_fp16_where_bf16_is_executed_names_bf16(demo_artifact_onnx_bf16: Artifact, demo_model: Path) -> None:
    verdict = only(demo_artifact_onnx_bf16, demo_model, "vae_encoder", emulate="fp16")
    (emulated,) = of_kind(verdict, "emulated")
    assert emulated.obstacle is not None
    assert "--emulate bf16" in emulated.obstacle
    assert verdict.exit_code == 3


def test_a_verdict_on_nothing_is_no_success() -> None:
    assert Verdict("artifact", "reference", "openvino-gpu", (0,), ()).exit_code == 3


# ---------------------------------------------------------------------------------------------------------- bad input


NOWHERE = ValidateOptions(Path("artifact"), Path("reference"))


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("no seeds", replace(NOWHERE, seeds=())),
        ("no steps", replace(NOWHERE, steps=0)),
        ("fp8", replace(NOWHERE, emulate="fp8")),
        ("none is drawn", replace(NOWHERE, generation=False, prompts=("a cat",))),
        ("none is drawn", replace(NOWHERE, generation=False, lpips=True)),
    ],
)
def test_senseless_options_are_refused_before_anything_is_read(reason: str, options: ValidateOptions) -> None:
    with pytest.raises(RequestError, match=reason):
        validate(options)


def test_an_unknown_component_is_named(demo_artifact_fp16: Artifact, demo_model: Path) -> None:
    with pytest.raises(RequestError, match="unet_2"):
        only(demo_artifact_fp16, demo_model, "unet_2")
    with pytest.raises(RequestError, match="no component"):
        only(demo_artifact_fp16, demo_model)


def test_another_architecture_is_refused(copied: Artifact, demo_model: Path, edit_text: EditText) -> None:
    edit_text("unet/config.json", '"layers_per_block": 2', '"layers_per_block": 3')
    with pytest.raises(ModelError, match="layers_per_block is 3, the reference has 2") as caught:
        only(copied, demo_model, "unet")
    assert caught.value.exit_code == 3


def test_another_family_is_refused(copied: Artifact, demo_model: Path) -> None:
    (copied.folder / MANIFEST).write_bytes(replace(copied, family="sd15").manifest())
    with pytest.raises(ModelError, match="sd15"):
        only(copied, demo_model, "unet")


def test_an_altered_file_is_found_by_its_hash(copied: Artifact, demo_model: Path) -> None:
    file = copied.folder / "unet" / "openvino_model.bin"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"openvino_model\.bin"):
        only(copied, demo_model, "vae_decoder")


def test_a_reference_that_is_not_there_is_bad_input(demo_artifact_fp16: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        only(demo_artifact_fp16, tmp_path / "nowhere", "unet")


def test_without_a_reference_the_demo_model_is_taken_for_its_own_artifact_alone(copied: Artifact, cache_folder: Path) -> None:
    options = ValidateOptions(copied.folder, components=("vae_encoder",), generation=False, seeds=(0,), cache=cache_folder)
    assert validate(options).exit_code == 0
    sources = {**copied.sources, "unet/diffusion_pytorch_model.safetensors": "0" * 64}
    (copied.folder / MANIFEST).write_bytes(replace(copied, sources=sources).manifest())
    with pytest.raises(RequestError, match="--reference"):
        validate(options)
