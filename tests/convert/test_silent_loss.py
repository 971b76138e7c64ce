"""Nothing is lost in silence: what is too large or too small for float16 is repaired or named, in every component."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vaefix.convert.checkpoint import Checkpoint, TensorRef
from vaefix.convert.cli import main
from vaefix.convert.convert import ConvertOptions, Progress, convert
from vaefix.convert.demo import demo_model as make_demo_model
from vaefix.convert.execute import execute, load
from vaefix.convert.families import Component, sdxl
from vaefix.convert.program import Program
from vaefix.convert.repair.identity import scaled_weights
from vaefix.convert.repair.plan import Range, ScalePlan, apply_to_program
from vaefix.convert.repair.plant import plant
from vaefix.convert.repair.ranges import activation_ranges, weight_statistics
from vaefix.convert.targets import Job
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ParityError
from vaefix.runtime.progress import Activity
from vaefix.validate.subject import ValidateOptions
from vaefix.validate.validate import validate

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
LAYER = "text_model.encoder.layers.1."
slow = pytest.mark.slow


@dataclass(frozen=True)
class Twin:
    """A component of the healthy demo model: what it is, and what its activations reach."""

    component: Component
    program: Program
    tensors: Mapping[str, TensorRef]
    ranges: Mapping[str, Range]

    def weight(self, name: str) -> torch.Tensor:
        return load(self.tensors[name])


@pytest.fixture(scope="module")
def twin(cache_folder: Path, jobs_of: Callable[[Path], dict[str, Job]]) -> Callable[[str], Twin]:
    """twin(component), measured once."""
    jobs = jobs_of(make_demo_model(cache_folder, healthy=True))

    @cache
    def of(name: str) -> Twin:
        component, program, tensors = jobs[name].component, jobs[name].program, jobs[name].tensors
        feeds = {key: torch.from_numpy(value) for key, value in sdxl.sample_inputs(component, 0, 8).items()}
        return Twin(component, program, tensors, activation_ranges(program, lambda key: load(tensors[key]), [feeds]))

    return of


@pytest.fixture
def model(cache_folder: Path, tmp_path: Path) -> Path:
    """A copy of the healthy demo model that a test may rewrite."""
    return Path(shutil.copytree(make_demo_model(cache_folder, healthy=True), tmp_path / "model"))


@pytest.fixture
def options(model: Path, cache_folder: Path, tmp_path: Path) -> Callable[..., ConvertOptions]:
    """options(component, target, precision): of that model."""

    def of(component: str, target: str = "openvino-gpu", precision: str = "fp16", **others: object) -> ConvertOptions:
        arguments = {"precision": {"*": precision}, "components": (component,), "cache": cache_folder, **others}
        return ConvertOptions(tmp_path / "out", model, target, **arguments)

    return of


def scale(model: Path, part: str, exponents: Mapping[str, int], dtype: torch.dtype = torch.float32) -> None:
    """Multiply the part's tensors by powers of two; it is stored in `dtype`."""
    (file,) = (model / part).glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    assert exponents.keys() <= tensors.keys()
    scaled = {name: (tensor * 2.0 ** exponents.get(name, 0)).to(dtype) for name, tensor in tensors.items()}
    save_file(scaled, file, {"format": "pt"})


def make_ill(model: Path, twin: Twin, seed: int, *, storable: bool = False) -> None:
    """Random exponents wherever the rules allow, as a checkpoint can store them. storable: no weight leaves float16."""
    weights = weight_statistics(twin.program, twin.weight) if storable else None
    plan = plant(twin.program, twin.ranges, seed, weights=weights, literals=False)
    assert min(plan.parameters.values()) < 0 < max(plan.parameters.values())
    exponents = {twin.tensors[name].name: exponent for name, exponent in plan.parameters.items()}
    scale(model, twin.component.part, exponents, torch.float16 if storable else torch.float32)


def check_repaired(artifact: Artifact, twin: Twin, model: Path) -> None:
    """Repaired, the same function bit by bit in float32, and as exact as its precision allows."""
    name, found = twin.component.name, artifact.parity[twin.component.name]
    assert artifact.components[name].repaired
    assert "warnings" not in found
    assert found["storing"]["outputs"] <= (1e-5 if artifact.components[name].precision == "fp16" else found["storing"]["limit"])
    plan = ScalePlan.from_json(json.loads((artifact.folder / name / "repair.json").read_text()))
    assert not plan.keep_fp32
    tensors = twin.component.bind({key: ref.shape for key, ref in twin.tensors.items()}, tensors_of(model, twin))
    feeds = {key: torch.from_numpy(value) for key, value in sdxl.sample_inputs(twin.component, 9, 6).items()}
    before = execute(twin.program, lambda key: load(tensors[key]), feeds)
    after = execute(apply_to_program(twin.program, plan), scaled_weights(lambda key: load(tensors[key]), plan), feeds)
    assert all(torch.equal(before[output], after[output]) for output in twin.component.outputs)


def tensors_of(model: Path, twin: Twin) -> Mapping[str, TensorRef]:
    return Checkpoint.open(model).tensors(twin.component.part)


def check_validated(artifact: Artifact, model: Path, cache_folder: Path, emulate: str | None) -> None:
    verdict = validate(ValidateOptions(artifact.folder, model, generation=False, emulate=emulate, cache=cache_folder))
    compared = [item for item in verdict.comparisons if item.difference is not None]
    assert {"parity", *(["emulated"] if emulate else [])} <= {item.kind for item in compared}
    failed = [item for item in verdict.comparisons if item.status == "failed" or item.obstacle]
    assert not failed, failed


CASES = [
    ("text_encoder", "openvino-gpu", "fp16", 0),
    ("text_encoder_2", "onnx-cpu", "fp16", 1),
    pytest.param("unet", "openvino-gpu", "fp16", 0, marks=slow),
    ("vae_decoder", "openvino-cpu", "fp16", 1),
    ("text_encoder", "onnx-cuda", "int8", 2),
    *(
        pytest.param(component, target, precision, 3 + number, marks=slow)
        for number, component in enumerate(COMPONENTS)
        for target in ("openvino-gpu", "openvino-cpu", "onnx-cuda", "onnx-cpu")
        for precision in ("fp16", "int8", "fp8_e4m3")
    ),
]


@pytest.mark.parametrize(("component", "target", "precision", "seed"), CASES)
def test_powers_of_two_planted_anywhere_are_repaired_exactly(
    twin: Callable[[str], Twin],
    options: Callable[..., ConvertOptions],
    model: Path,
    cache_folder: Path,
    component: str,
    target: str,
    precision: str,
    seed: int,
) -> None:
    make_ill(model, twin(component), seed)
    artifact = convert(options(component, target, precision))
    check_repaired(artifact, twin(component), model)
    check_validated(artifact, model, cache_folder, "fp16" if artifact.components[component].execution == "f16" else None)


ALONE = {
    "values": {"layer_norm1.weight": 6, "layer_norm1.bias": 6, "self_attn.q_proj.weight": -6, "self_attn.k_proj.weight": -6}
    | {"self_attn.v_proj.weight": -22, "self_attn.v_proj.bias": -16, "self_attn.out_proj.weight": 16},
    "norm": {"layer_norm2.weight": -20, "layer_norm2.bias": -20, "mlp.fc1.weight": 20},
    "query and key": {"self_attn.q_proj.weight": -17, "self_attn.q_proj.bias": -17}
    | {"self_attn.k_proj.weight": 17, "self_attn.k_proj.bias": 17},
}


@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu"])
@pytest.mark.parametrize("name", ALONE)
def test_a_single_pair_of_scales_is_found_and_repaired(
    twin: Callable[[str], Twin], options: Callable[..., ConvertOptions], model: Path, name: str, target: str
) -> None:
    scale(model, "text_encoder", {LAYER + key: exponent for key, exponent in ALONE[name].items()})
    check_repaired(convert(options("text_encoder", target)), twin("text_encoder"), model)


@pytest.mark.parametrize("component", ["text_encoder", pytest.param("unet", marks=slow)])
def test_a_checkpoint_in_fp16_loses_nothing_by_storing_and_overflows_all_the_same(
    twin: Callable[[str], Twin], options: Callable[..., ConvertOptions], model: Path, component: str
) -> None:
    make_ill(model, twin(component), 1, storable=True)
    artifact = convert(options(component))
    check_repaired(artifact, twin(component), model)
    assert artifact.parity[component]["activations"] == "measured"
    unrepaired = convert(options(component, repair="never", force=True)).parity[component]
    assert unrepaired["storing"] == {"weights": 0.0, "outputs": 0.0, "limit": 3e-3}
    assert any("beyond fp16 in which it is executed; --repair auto" in warning for warning in unrepaired["warnings"])


def test_without_a_repair_the_tensor_that_is_lost_is_named(
    options: Callable[..., ConvertOptions],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scale(model, "text_encoder", {LAYER + key: exponent for key, exponent in ALONE["values"].items()})
    asked = options("text_encoder", "openvino-cpu")
    arguments = ["--model", model, "-o", asked.output, "--cache", asked.cache, "--target", asked.target, "--repair", "never"]
    monkeypatch.setattr("sys.argv", ["vaefix-convert", *map(str, arguments), "--components", "text_encoder"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, err = capsys.readouterr()
    warnings = [line for line in err.splitlines() if line.startswith("warning: text_encoder: storing costs")]
    assert len(warnings) == 1
    assert f"{LAYER}self_attn.v_proj." in warnings[0]
    assert "--repair auto" in warnings[0]
    assert "--precision text_encoder=fp32" in warnings[0]
    assert "of an output, limit 3e-03" in out


def test_what_no_power_of_two_can_repair_is_named(options: Callable[..., ConvertOptions], model: Path) -> None:
    """Channels that are small where they are written and large where they are read, beside others the other way round."""
    scale(model, "text_encoder", {LAYER + key: exponent for key, exponent in ALONE["values"].items()})
    file = model / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    for key, exponent in {"v_proj.weight": 39, "v_proj.bias": 30}.items():
        tensors[f"{LAYER}self_attn.{key}"][::2] *= 2.0**exponent
    tensors[f"{LAYER}self_attn.out_proj.weight"][:, ::2] *= 2.0**-39
    save_file(tensors, file, {"format": "pt"})
    artifact = convert(options("text_encoder", "onnx-cpu"))
    (warning,) = artifact.parity["text_encoder"]["warnings"]
    assert "costs" in warning
    assert "fp16" in warning
    assert "--precision text_encoder=fp32" in warning


def test_a_component_of_which_nothing_is_left_is_no_artifact(options: Callable[..., ConvertOptions], model: Path) -> None:
    names = [name for name in load_file(model / "text_encoder" / "model.safetensors") if "final_layer_norm" in name]
    scale(model, "text_encoder", dict.fromkeys(names, -30))
    asked = options("text_encoder", "onnx-cpu", repair="never")
    with pytest.raises(ParityError, match="nothing is left of an output") as caught:
        convert(asked)
    assert caught.value.source == "text_encoder"
    assert not asked.output.exists()


@pytest.mark.parametrize("target", ["openvino-gpu", "onnx-cpu"])
def test_a_layer_that_does_nothing_is_no_illness(options: Callable[..., ConvertOptions], model: Path, target: str) -> None:
    """Single weights, biases and whole layers that are next to zero are lost in float16, and no output feels it."""
    dead = [f"{LAYER}self_attn.{name}" for name in ("out_proj.weight", "out_proj.bias", "k_proj.bias")]
    scale(model, "text_encoder", dict.fromkeys(dead, -25))
    artifact = convert(options("text_encoder", target))
    assert not artifact.components["text_encoder"].repaired
    found = artifact.parity["text_encoder"]
    assert found["storing"]["worst_tensor"] in dead
    assert found["storing"]["worst"] > 0.1
    assert found["storing"]["outputs"] < 1e-6
    assert "warnings" not in found


@pytest.mark.parametrize(
    ("target", "precision"), [("openvino-gpu", "fp16"), ("onnx-cpu", "fp16"), pytest.param("onnx-cuda", "int8", marks=slow)]
)
def test_healthy_weights_of_all_digits_are_left_alone(
    options: Callable[..., ConvertOptions], model: Path, target: str, precision: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    for file in model.rglob("*.safetensors"):
        noisy = {
            name: t.float() * (1 + 1e-3 * torch.randn(t.shape, generator=generator)) for name, t in load_file(file).items()
        }
        save_file(noisy, file, {"format": "pt"})
    asked = replace(options("", target, precision), components=COMPONENTS[:2] if precision == "fp16" else None)
    looked, unlooked = convert(asked), convert(replace(asked, repair="never", force=True))
    assert not any(entry.repaired for entry in looked.components.values())
    weights = [name for name in looked.files if not name.startswith("vae")]
    assert {name: looked.files[name] for name in weights} == {name: unlooked.files[name] for name in weights}
    for found in looked.parity.values():
        assert 0 < found["storing"]["weights"] <= found["storing"]["limit"]
        assert 0 < found["storing"]["outputs"] <= found["storing"]["limit"]
        assert precision != "fp16" or found["storing"]["weights"] <= found["storing"]["outputs"]
        assert "warnings" not in found


def test_what_is_too_large_to_be_run_is_said_not_to_have_been(
    options: Callable[..., ConvertOptions], model: Path, twin: Callable[[str], Twin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vaefix.convert.verify.LARGE", 1000)
    scale(model, "text_encoder", {LAYER + key: exponent for key, exponent in ALONE["values"].items()})
    found = convert(options("text_encoder")).parity["text_encoder"]
    assert found["activations"].startswith("not measured")
    assert "outputs" not in found["storing"]
    (warning,) = found["warnings"]
    assert "2 tensors" in warning
    assert f"{LAYER}self_attn.v_proj." in warning
    assert "--repair always" in warning
    repaired = convert(options("text_encoder", repair="always", force=True))
    assert repaired.components["text_encoder"].repaired
    assert repaired.parity["text_encoder"]["activations"] == "measured"
    assert "warnings" not in repaired.parity["text_encoder"]


class Stopped(Exception):
    """In place of a signal."""


def test_a_conversion_that_goes_on_says_the_same(options: Callable[..., ConvertOptions], model: Path) -> None:
    scale(model, "text_encoder", {LAYER + key: exponent for key, exponent in ALONE["values"].items()})
    asked = options("text_encoder", "onnx-cpu", "int8")

    def stop(stage: Activity) -> None:
        if stage.what == "verify":
            raise Stopped

    with pytest.raises(Stopped):
        convert(asked, Progress(stop))
    resumed = convert(asked)
    assert resumed.manifest() == convert(replace(asked, force=True)).manifest()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_manifest_does_not_depend_on_the_number_of_threads(
    options: Callable[..., ConvertOptions], model: Path, precision: str
) -> None:
    scale(model, "text_encoder", {LAYER + key: exponent for key, exponent in ALONE["values"].items()})
    asked = options("text_encoder", "onnx-cpu", precision, repair="never", force=True)
    before = torch.get_num_threads()
    manifests = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        manifests.append(convert(asked).manifest())
    torch.set_num_threads(before)
    assert manifests[0] == manifests[1]
