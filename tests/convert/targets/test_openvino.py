"""What is particular to OpenVINO IR: skeletons, literals, precision marks, and a damaged file is noticed."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import openvino as ov
import pytest
import torch

from vaefix.convert.capture import capture
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.policy import storages
from vaefix.convert.precision import Storage
from vaefix.convert.program import Input, Program
from vaefix.convert.repair.plan import ScalePlan
from vaefix.convert.targets.openvino.graph import lower
from vaefix.convert.targets.openvino.skeleton import Literal, Skeleton, fill
from vaefix.convert.targets.openvino.weights import Blob, Hole, layout
from vaefix.runtime.errors import ModelError

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")


@pytest.mark.parametrize("name", COMPONENTS)
def test_skeleton_is_the_same_on_every_run_and_survives_json(programs: dict[str, Program], name: str) -> None:
    skeleton = lower(programs[name])
    ov.opset13.constant(1)  # moves the process-wide counter of node names
    assert lower(programs[name]) == skeleton
    assert Skeleton.from_json(json.loads(json.dumps(skeleton.to_json()))) == skeleton
    assert {hole.parameter for hole in skeleton.holes()} == {p.name for p in programs[name].parameters.values()}


def test_every_normalisation_leaves_its_epsilon_open(programs: dict[str, Program]) -> None:
    for program in programs.values():
        norms = {op.name for op in program.ops if op.target in {"aten.group_norm.default", "aten.layer_norm.default"}}
        assert norms == {part.op for part in lower(program).parts if isinstance(part, Literal)}


def filled(program: Program, plan: ScalePlan) -> str:
    return graph_and_blobs(lower(program), program, plan)[0]


def graph_and_blobs(skeleton: Skeleton, program: Program, plan: ScalePlan) -> tuple[str, list[Blob]]:
    """The XML in fp16, and where the weights lie."""
    storage = storages(program, "fp16", None)
    blobs = layout(storage, {p.name: p.shape for p in program.parameters.values()}, len(skeleton.constants))
    return "".join(fill(skeleton, storage, blobs, plan, {})), [blob for part in blobs.values() for blob in part.values()]


def test_plan_scales_the_epsilon_of_its_operation_only(programs: dict[str, Program]) -> None:
    program = programs["vae_decoder"]
    plain, scaled = (filled(program, plan) for plan in (ScalePlan(), ScalePlan(literals={"group_norm_3": -20})))
    values = [float(value) for value in re.findall(r'epsilon="([^"]*)"', scaled)]
    assert sorted(values)[0] == 1e-6 * 2.0**-20
    assert values.count(1e-6) == len(values) - 1
    assert len(values) == len(re.findall("epsilon=", plain))


def test_plan_for_an_operation_without_literal_is_refused(programs: dict[str, Program]) -> None:
    with pytest.raises(ValueError, match="conv2d_1"):
        filled(programs["vae_decoder"], ScalePlan(literals={"conv2d_1": 2}))


def precise_layers(program: Program, plan: ScalePlan, folder: Path) -> set[str]:
    """Names of the layers that OpenVINO reads back as precision-sensitive."""
    skeleton = lower(program)
    text, blobs = graph_and_blobs(skeleton, program, plan)
    (folder / "m.xml").write_text(text)
    (folder / "m.bin").write_bytes(skeleton.constants.ljust(max(blob.offset + blob.size for blob in blobs), b"0"))
    model = ov.Core().read_model(folder / "m.xml")
    marks = ("precise", "DisablePrecisionConversion")  # OpenVINO's older and newer name of the attribute
    return {node.get_friendly_name() for node in model.get_ops() if any(key.startswith(marks) for key in node.get_rt_info())}


def test_operations_kept_in_fp32_are_marked_for_the_plugin(programs: dict[str, Program], tmp_path: Path) -> None:
    assert not precise_layers(programs["vae_decoder"], ScalePlan(), tmp_path)
    marked = precise_layers(programs["vae_decoder"], ScalePlan(keep_fp32=("conv2d_1",)), tmp_path)
    assert marked
    assert all("/conv2d_1" in name for name in marked)


def test_time_embedding_is_computed_in_fp32_on_every_device(programs: dict[str, Program], tmp_path: Path) -> None:
    marked = precise_layers(programs["unet"], ScalePlan(), tmp_path)
    kinds = {name.rpartition("/")[2].rstrip("_0123456789") for name in marked}
    assert {"sin", "cos", "mul", "to"} <= kinds
    assert not kinds & {"linear", "conv", "cat", "group_norm"}


def test_unknown_operation_is_named_with_its_module() -> None:
    class Odd(torch.nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(value, 1)

    program = capture(
        torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"), Odd()), [Input("x", "float32", (None, 4))], ["y"]
    )
    with pytest.raises(ModelError, match="aten.cumsum.default") as error:
        lower(program)
    assert error.value.source == "1"


def test_layout_is_aligned_and_without_overlap() -> None:
    storage = {"a": Storage("f16"), "b": Storage("i8"), "c": Storage("i4", 16), "d": Storage("f32")}
    places = layout(storage, {"a": (3,), "b": (3, 5), "c": (10, 32), "d": (7,)}, 10)
    blobs = [blob for parts in places.values() for blob in parts.values()]
    assert [blob.size for blob in blobs] == [6, 15, 6, 160, 40, 16, 28]
    assert all(blob.offset % 64 == 0 for blob in blobs)
    assert all(first.offset + first.size <= second.offset for first, second in itertools.pairwise(blobs))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "-1.0"),
        ({"repair": "never"}, "128.0"),
        ({"precision": {"*": "fp32"}}, None),
        ({"target": "openvino-cpu"}, None),
    ],
)
def test_scale_factor_says_what_the_decoder_needs(
    demo_model: Path, cache_folder: Path, tmp_path: Path, options: dict, expected: str | None
) -> None:
    folder = convert(
        replace(ConvertOptions(tmp_path / "out", demo_model, components=("vae_decoder",), cache=cache_folder), **options)
    ).folder
    model = ov.Core().read_model(folder / "vae_decoder" / "openvino_model.xml")
    path = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
    assert (model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None) == expected


def swap_two_weights(folder: Path) -> None:
    """Exchange the bytes of two weights of equal shape."""
    text = (folder / "openvino_model.xml").read_text()
    spans = [
        (int(m[2]), int(m[3]))
        for m in re.finditer(r'name="([^"]*conv1.weight)" type="Const".*?offset="(\d+)" size="(\d+)"', text, re.DOTALL)
    ]
    (a, size), (b, _) = next((x, y) for i, x in enumerate(spans) for y in spans[i + 1 :] if x[1] == y[1])
    data = bytearray((folder / "openvino_model.bin").read_bytes())
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    (folder / "openvino_model.bin").write_bytes(data)


def edit_graph(folder: Path, pattern: str, replacement: str) -> None:
    path = folder / "openvino_model.xml"
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1
    path.write_text(text)


FAULTS = {
    "two weights swapped": swap_two_weights,
    "the last weights are zero": lambda folder: (folder / "openvino_model.bin").write_bytes(
        (folder / "openvino_model.bin").read_bytes()[:-4096].ljust((folder / "openvino_model.bin").stat().st_size, b"\0")
    ),
    "another type": lambda folder: edit_graph(folder, r'(conv_in.weight".*?element_type=")f32', r"\1f16"),
    "another shape": lambda folder: edit_graph(folder, r'(conv_in.weight".*?shape=")\d+', r"\g<1>7"),
    "another name": lambda folder: edit_graph(folder, r'name="decoder.conv_in.weight"', 'name="decoder.conv_on.weight"'),
    "outside the file": lambda folder: edit_graph(folder, r'(conv_in.weight".*?offset=")\d+', r"\g<1>99999999999"),
    "over another weight": lambda folder: edit_graph(folder, r'(conv_in.weight".*?offset=")\d+', r"\g<1>64"),
    "an epsilon": lambda folder: edit_graph(folder, r'(norm2/group_norm_1/.*?epsilon=")1e-06', r"\g<1>0.1"),
    "other input": lambda folder: edit_graph(
        folder, r'name="latent_sample" type="Parameter"', 'name="latents" type="Parameter"'
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verification_catches(refused: Callable[[str, Callable[[Path], None]], None], fault: str) -> None:
    refused("openvino-cpu", FAULTS[fault])


def test_hole_for_a_bias_has_the_shape_the_graph_wants(programs: dict[str, Program]) -> None:
    holes: dict[str, Hole] = {hole.parameter: hole for hole in lower(programs["vae_decoder"]).holes()}
    assert holes["decoder.conv_in.bias"].shape == (1, 64, 1, 1)
    assert holes["decoder.conv_norm_out.bias"].shape == (16,)
