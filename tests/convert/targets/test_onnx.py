"""What is particular to ONNX: optimum-onnx's contract, true 16-bit graphs, kernels that exist, data that is written once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from vaefix.convert.capture import capture
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.execute import static_values
from vaefix.convert.policy import storages
from vaefix.convert.program import Input, Program
from vaefix.convert.repair.plan import ScalePlan
from vaefix.convert.targets.onnx.attention import flat_attentions
from vaefix.convert.targets.onnx.graph import Form, Graph, build
from vaefix.convert.targets.onnx.layout import NO_BF16
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ModelError, RequestError
from vaefix.runtime.widen import NARROW

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder")
SIXTEEN_BITS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

# Source: optimum-onnx 0.1.0, exporters/onnx/model_configs.py (UNetOnnxConfig, VaeEncoderOnnxConfig, VaeDecoderOnnxConfig,
# CLIPTextOnnxConfig, CLIPTextWithProjectionOnnxConfig) and onnxruntime/modeling_diffusion.py. Its axis 1 of text_embeds is
# named sequence_length; the size is in fact the projection's, and static.
HIDDEN = ["batch_size", "sequence_length", "width"]
CONTRACT: dict[str, tuple[dict[str, list], dict[str, list]]] = {
    "text_encoder": (
        {"input_ids": [TensorProto.INT64, "batch_size", "sequence_length"]},
        {"last_hidden_state": HIDDEN, "pooler_output": ["batch_size", "width"], "hidden_states.": HIDDEN},
    ),
    "text_encoder_2": (
        {"input_ids": [TensorProto.INT64, "batch_size", "sequence_length"]},
        {"text_embeds": ["batch_size", "width"], "last_hidden_state": HIDDEN, "hidden_states.": HIDDEN},
    ),
    "unet": (
        {
            "sample": [TensorProto.FLOAT, "batch_size", 4, "height", "width"],
            "timestep": [TensorProto.FLOAT],
            "encoder_hidden_states": [TensorProto.FLOAT, "batch_size", "sequence_length", 96],
            "text_embeds": [TensorProto.FLOAT, "batch_size", 64],
            "time_ids": [TensorProto.FLOAT, "batch_size", 6],
        },
        {"out_sample": ["batch_size", 4, "height", "width"]},
    ),
    "vae_encoder": (
        {"sample": [TensorProto.FLOAT, "batch_size", 3, "sample_height", "sample_width"]},
        {"latent_parameters": ["batch_size", 8, "sample_height / 8", "sample_width / 8"]},
    ),
    "vae_decoder": (
        {"latent_sample": [TensorProto.FLOAT, "batch_size", 4, "latent_height", "latent_width"]},
        {"sample": ["batch_size", 3, "latent_height * 8", "latent_width * 8"]},
    ),
}

# Every operation of the graphs with a bfloat16 kernel in ONNX Runtime's CUDA provider at opset 23.
# Source: docs/OperatorKernels.md of onnxruntime, section CUDAExecutionProvider, and single-node models placed by
# onnxruntime-gpu 1.31.1. Not among them: Resize, Pad, InstanceNormalization, Clip, ArgMax, Equal, LessOrEqual.
CUDA_BF16 = {
    *("Add", "Attention", "AveragePool", "Cast", "Concat", "Conv", "Div", "Expand", "Gather", "GatherND", "Gelu", "Identity"),
    *("LayerNormalization", "MatMul", "Mul", "Reshape", "Shape", "Sigmoid", "Slice", "Softmax", "Split", "Sub"),
    *("Transpose", "Unsqueeze", "Where"),
}


@pytest.fixture(scope="session")
def narrow(demo_artifact_onnx_cuda: Artifact, demo_artifact_onnx_bf16: Artifact) -> Callable[[str], Artifact]:
    """narrow(precision): the demo model for CUDA in 16 bits."""
    return {"fp16": demo_artifact_onnx_cuda, "bf16": demo_artifact_onnx_bf16}.__getitem__


def load(artifact: Artifact, name: str) -> onnx.ModelProto:
    """The graph, without its data."""
    return onnx.load(artifact.folder / artifact.component(name).model, load_external_data=False)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, as ONNX infers it: strictly, so an operation with a type it may not have fails here."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    found = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.value_info, *graph.output)}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


def bf16_operations(model: onnx.ModelProto) -> set[str]:
    """Those that read or write a bfloat16."""
    types = types_of(model)
    return {
        node.op_type
        for node in model.graph.node
        if TensorProto.BFLOAT16 in {types[value] for value in (*node.input, *node.output) if value}
    }


def axes(item: onnx.ValueInfoProto) -> list[Any]:
    return [size.dim_param or size.dim_value for size in item.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", COMPONENTS)
def test_names_axes_and_types_are_those_of_optimum(narrow: Callable[[str], Artifact], name: str) -> None:
    artifact = narrow("fp16")
    graph = load(artifact, name).graph
    inputs, outputs = CONTRACT[name]
    assert {item.name: [item.type.tensor_type.elem_type, *axes(item)] for item in graph.input} == inputs
    heads = [item for item in graph.output if not item.name.startswith("hidden_states.")]
    assert [item.name for item in heads] == [key for key in outputs if key != "hidden_states."]
    hidden = [item for item in graph.output if item.name.startswith("hidden_states.")]
    if hidden:
        layers = artifact.config(name)["num_hidden_layers"]
        assert [item.name for item in hidden] == [f"hidden_states.{layer}" for layer in range(layers + 1)]
    for item in graph.output:
        expected = outputs[re.sub(r"\d+$", "", item.name)]
        assert item.type.tensor_type.elem_type == TensorProto.FLOAT
        assert [size if name_ != "width" else name_ for size, name_ in zip(axes(item), expected, strict=True)] == expected
    assert {file.name for file in (artifact.folder / name).iterdir()} >= {"model.onnx", "model.onnx_data", "config.json"}


@pytest.mark.parametrize("precision", SIXTEEN_BITS)
@pytest.mark.parametrize("name", COMPONENTS)
def test_graph_is_truly_16_bit_inside(narrow: Callable[[str], Artifact], name: str, precision: str) -> None:
    model = load(narrow(precision), name)
    onnx.checker.check_model(narrow(precision).folder / name / "model.onnx", full_check=True)
    types, wanted = types_of(model), SIXTEEN_BITS[precision]
    work = [node for node in model.graph.node if node.op_type in {"Conv", "MatMul", "Attention", "LayerNormalization"}]
    assert work
    assert all(types[name] == wanted for node in work for name in (*node.input[:2], *node.output))
    in_f32 = {node.op_type for node in model.graph.node if types[node.output[0]] == TensorProto.FLOAT}
    allowed = {"Cast", "Sin", "Cos", "Mul", "Expand", "Unsqueeze", "Reshape", "Slice", "Concat"}  # the time embedding
    assert in_f32 <= allowed | ({"Resize", "Pad"} if precision == "bf16" else set())
    assert all(tensor.data_type == wanted for tensor in model.graph.initializer if tensor.external_data)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_operation_in_bf16_has_a_kernel_on_cuda(narrow: Callable[[str], Artifact], name: str) -> None:
    model = load(narrow("bf16"), name)
    used = bf16_operations(model)
    assert used
    assert used <= CUDA_BF16
    (opset,) = [entry.version for entry in model.opset_import if not entry.domain]
    assert opset >= 22, "CUDA has Conv in bf16 from opset 22 on"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", COMPONENTS)
def test_nothing_is_used_that_leaves_the_card_or_normalises_in_half(
    narrow: Callable[[str], Artifact], name: str, precision: str
) -> None:
    model = load(narrow(precision), name)
    kinds, types = {node.op_type for node in model.graph.node}, types_of(model)
    assert not kinds & {"InstanceNormalization", "GroupNormalization", "Swish"}
    # CUDA has ArgMax for floating point only, and a CUDA graph suffers no node beside it.
    assert {types[node.input[0]] for node in model.graph.node if node.op_type == "ArgMax"} <= {TensorProto.FLOAT}


@pytest.mark.parametrize("name", COMPONENTS)
def test_weights_are_written_once_and_nothing_else_is(narrow: Callable[[str], Artifact], name: str) -> None:
    artifact = narrow("fp16")
    model = load(artifact, name)
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    count = sum(int(np.prod(tensor.dims)) for tensor in external)
    size = artifact.files[f"{name}/model.onnx_data"].size
    assert 2 * count <= size <= 2 * count + 4096 * len(external)
    assert sum(len(tensor.raw_data) for tensor in model.graph.initializer if not tensor.external_data) < 1 << 16
    weights = {tensor.name for tensor in external}
    assert not [node.name for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    assert all(int(entry.value) % 4096 == 0 for tensor in external for entry in tensor.external_data if entry.key == "offset")


def test_every_weight_is_used_and_every_node_leads_to_an_output(narrow: Callable[[str], Artifact]) -> None:
    for name in COMPONENTS:
        graph = load(narrow("fp16"), name).graph
        read = {value for node in graph.node for value in node.input} | {item.name for item in graph.output}
        assert all(tensor.name in read for tensor in graph.initializer)
        assert all(read.intersection(node.output) for node in graph.node)


def test_nodes_carry_their_module_path(narrow: Callable[[str], Artifact]) -> None:
    names = {node.name for node in load(narrow("fp16"), "vae_decoder").graph.node}
    assert any(name.startswith("decoder.mid_block.resnets.0.conv1/") and name.endswith("/Conv") for name in names)


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_no_head_is_split_off_for_the_attention_node(narrow: Callable[[str], Artifact], name: str) -> None:
    model = load(narrow("fp16"), name)
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    assert nodes
    assert all({"q_num_heads", "kv_num_heads"} <= {attribute.name for attribute in node.attribute} for node in nodes)
    producer = {output: node.op_type for node in model.graph.node for output in node.output}
    assert not [node.name for node in nodes if "Transpose" in {producer.get(value) for value in node.input}]


def test_heads_stay_split_where_something_else_reads_them() -> None:
    class Peeking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (torch.nn.Linear(8, 8, device="meta") for _ in range(3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            q, k, v = (part(x).view(x.shape[0], -1, 2, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
            result = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return result.transpose(1, 2).reshape(x.shape[0], -1, 8), result

    program = capture(Peeking(), [Input("x", "float32", (None, None, 8))], ["y", "heads"])
    assert flat_attentions(program) == ({}, frozenset())


def small_graph(program: Program, plan: ScalePlan, execution: str = "f16", in_f32: frozenset[str] = frozenset()) -> Graph:
    constants = {name: value.numpy() for name, value in static_values(program).items()}
    storage = storages(program, {"f16": "fp16", "bf16": "bf16", "f32": "fp32"}[execution], None)
    return build(program, constants, plan, Form(storage, execution, "f32", 23, in_f32, {}))


def attribute(node: onnx.NodeProto, name: str) -> Any:
    return helper.get_node_attr_value(node, name)


def test_plan_scales_the_epsilon_of_its_operation_only(programs: dict[str, Program]) -> None:
    model = small_graph(programs["vae_decoder"], ScalePlan(literals={"group_norm_3": -20})).model([])
    norms = {node.name: attribute(node, "epsilon") for node in model.graph.node if node.op_type == "LayerNormalization"}
    scaled = [value for name, value in norms.items() if "/group_norm_3/" in name]
    assert scaled == [np.float32(1e-6 * 2.0**-20)]
    assert sorted(norms.values()).count(np.float32(1e-6)) == len(norms) - 1


def test_operation_kept_in_fp32_computes_in_fp32_and_no_other_does(programs: dict[str, Program]) -> None:
    program = programs["vae_decoder"]
    model = small_graph(program, ScalePlan(keep_fp32=("conv2d_1",))).model([])
    del model.graph.initializer[:]
    kept = [node for node in model.graph.node if node.op_type == "Conv" and "/conv2d_1/" in node.name]
    producer = {output: node for node in model.graph.node for output in node.output}
    assert len(kept) == 1
    assert all(attribute(producer[value], "to") == TensorProto.FLOAT for value in kept[0].input)
    others = [node for node in model.graph.node if node.op_type == "Conv" and node not in kept]
    casts = [producer[value].op_type == "Cast" for node in others for value in node.input[1:] if value in producer]
    assert not any(casts)


def test_plan_for_an_operation_without_literal_is_refused(programs: dict[str, Program]) -> None:
    with pytest.raises(ValueError, match="conv2d_1"):
        small_graph(programs["vae_decoder"], ScalePlan(literals={"conv2d_1": 2}))


def small_program(function: Callable[[torch.Tensor], torch.Tensor], rank: int = 2) -> Program:
    """The function of one float32 input [N, 4, ...]."""

    class Small(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    return capture(Small(), [Input("x", "float32", (None, 4, *[None] * (rank - 2)))], ["y"])


def test_plan_scales_a_number_that_is_added() -> None:
    program = small_program(lambda x: x + 0.5)
    graph = small_graph(program, ScalePlan(literals={program.ops[0].name: -3})).model([]).graph
    assert [float(numpy_helper.to_array(tensor)) for tensor in graph.initializer] == [0.0625]


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.702, TensorProto.FLOAT), (0.5, TensorProto.BFLOAT16), (257, TensorProto.FLOAT), (256, TensorProto.BFLOAT16)],
)
def test_a_number_that_bf16_cannot_hold_is_multiplied_in_fp32(factor: float, expected: int) -> None:
    graph = small_graph(small_program(lambda x: x * factor), ScalePlan(), "bf16").model([]).graph
    (number,) = [tensor for tensor in graph.initializer if tensor.data_type in (*NARROW, TensorProto.FLOAT)]
    assert number.data_type == expected
    assert float(numpy_helper.to_array(number)) == np.float32(factor)


def test_unknown_operation_is_named_with_its_module() -> None:
    class Odd(torch.nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return torch.cumsum(value, 1)

    module = torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"), Odd())
    with pytest.raises(ModelError, match=r"aten.cumsum.default has no ONNX lowering") as error:
        small_graph(capture(module, [Input("x", "float32", (None, 4))], ["y"]), ScalePlan())
    assert error.value.source == "1"


OTHERS = {"mish": torch.nn.functional.mish, "average": lambda x: torch.nn.functional.avg_pool2d(x, 2)}


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_models_are_made_of_has_a_kernel_too(name: str) -> None:
    graph = small_graph(small_program(OTHERS[name], 4), ScalePlan(), "bf16", NO_BF16).model([])
    assert bf16_operations(graph) <= CUDA_BF16
    assert any(node.op_type in ("Softplus", "AveragePool") for node in graph.graph.node)


def test_bf16_leaves_out_what_has_no_kernel(programs: dict[str, Program]) -> None:
    everything = (*programs.values(), small_program(torch.nn.functional.mish))
    targets = {op.target for program in everything for op in program.ops}
    assert targets >= NO_BF16, "an operation is listed that no component has"


@pytest.fixture(scope="session")
def fp16_edges(demo_model: Path, cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The demo model for CUDA with inputs and outputs in fp16."""
    output = tmp_path_factory.mktemp("onnx") / "io"
    return convert(ConvertOptions(output, demo_model, "onnx-cuda", io="fp16", cache=cache_folder))


def test_edges_in_fp16_on_request_but_never_what_leads_to_a_sine(fp16_edges: Artifact) -> None:
    for name in COMPONENTS:
        graph = load(fp16_edges, name).graph
        found = {item.name: item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)}
        assert found.pop("input_ids", TensorProto.INT64) == TensorProto.INT64
        assert {found.pop(key, TensorProto.FLOAT) for key in ("timestep", "time_ids")} == {TensorProto.FLOAT}
        assert set(found.values()) == {TensorProto.FLOAT16}


def test_pipelines_in_fp16_are_told_not_to_turn_the_vae_into_float32(
    fp16_edges: Artifact, demo_artifact_onnx_cuda: Artifact
) -> None:
    for name in ("vae_decoder", "vae_encoder"):
        assert demo_artifact_onnx_cuda.config(name)["force_upcast"] is True, "the user's own config, as it is"
        assert fp16_edges.config(name) == {**demo_artifact_onnx_cuda.config(name), "force_upcast": False}


@pytest.mark.parametrize(
    ("options", "reason", "remedy"),
    [
        ({"target": "onnx-cpu", "precision": {"*": "bf16"}}, "no precision 'bf16'", "fp32, fp16"),
        ({"target": "openvino-gpu", "precision": {"*": "bf16"}}, "no precision 'bf16'", "fp32, fp16"),
        ({"target": "openvino-gpu", "io": "fp16"}, "no inputs and outputs in 'fp16'", "fp32"),
        ({"target": "onnx-cuda", "io": "fp16", "precision": {"*": "bf16"}}, "text_encoder is bf16", "--precision fp16"),
        ({"target": "onnx-cuda", "io": "int8"}, "no inputs and outputs in 'int8'", "fp32, fp16"),
        ({"target": "onnx-rocm"}, "unknown target 'onnx-rocm'", "onnx-cuda, onnx-cpu"),
    ],
)
def test_what_a_target_lacks_is_refused_with_what_it_has(
    demo_model: Path, cache_folder: Path, tmp_path: Path, options: Mapping[str, Any], reason: str, remedy: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(reason)) as error:
        convert(replace(ConvertOptions(tmp_path / "out", demo_model, cache=cache_folder), **options))
    assert remedy in str(error.value.remedy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp32", "bf16"))])
def test_same_input_gives_the_same_bytes(demo_model: Path, cache_folder: Path, tmp_path: Path, precision: str) -> None:
    options = ConvertOptions(tmp_path / "a", demo_model, "onnx-cuda", {"*": precision}, cache=cache_folder)
    options = replace(options, components=("vae_decoder", "text_encoder"))
    first, second = convert(options), convert(replace(options, output=tmp_path / "b", cache=tmp_path / "cold"))
    assert dict(first.files) == dict(second.files)


def swap_two_weights(folder: Path) -> None:
    """Exchange the bytes of two weights of equal shape."""
    tensors = onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer
    spans = [
        [int(entry.value) for entry in tensor.external_data if entry.key != "location"]
        for tensor in tensors
        if tensor.name.endswith("conv1.weight")
    ]
    (a, size), (b, _) = next((x, y) for i, x in enumerate(spans) for y in spans[i + 1 :] if x[1] == y[1])
    data = bytearray((folder / "model.onnx_data").read_bytes())
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    (folder / "model.onnx_data").write_bytes(data)


def edit(change: Callable[[onnx.GraphProto], None]) -> Callable[[Path], None]:
    """A fault in the graph."""

    def apply(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        before = model.SerializeToString(deterministic=True)
        change(model.graph)
        assert model.SerializeToString(deterministic=True) != before
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))

    return apply


def weight(graph: onnx.GraphProto, name: str = "decoder.conv_in.weight") -> TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def place(key: str, value: int | str) -> Callable[[Path], None]:
    def change(graph: onnx.GraphProto) -> None:
        next(entry for entry in weight(graph).external_data if entry.key == key).value = str(value)

    return edit(change)


def other_epsilon(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.name.endswith("norm2/group_norm_1/LayerNormalization"))
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 0.1


FAULTS: dict[str, Callable[[Path], None]] = {
    "two weights swapped": swap_two_weights,
    "data cut short": lambda folder: (folder / "model.onnx_data").write_bytes((folder / "model.onnx_data").read_bytes()[:-8]),
    "data missing": lambda folder: (folder / "model.onnx_data").unlink(),
    "graph cut short": lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-99]),
    "another type": edit(lambda graph: setattr(weight(graph), "data_type", TensorProto.INT32)),
    "another shape": edit(lambda graph: weight(graph).dims.append(2)),
    "rows and columns exchanged": edit(
        lambda graph: (
            weight(graph, "decoder.mid_block.attentions.0.to_q.weight").dims.reverse()
            or weight(graph, "decoder.mid_block.attentions.0.to_q.bias").dims.append(1)
        )
    ),
    "another name": edit(lambda graph: setattr(weight(graph), "name", "decoder.conv_on.weight")),
    "outside the file": place("offset", 1 << 40),
    "over another weight": place("offset", 4096),
    "in another file": place("location", "../other_data"),
    "an epsilon": edit(other_epsilon),
    "other input": edit(lambda graph: setattr(graph.input[0], "name", "latents")),
    "other output": edit(lambda graph: setattr(graph.output[0], "name", "picture")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verification_catches(refused: Callable[[str, Callable[[Path], None]], None], fault: str) -> None:
    refused("onnx-cuda", FAULTS[fault])
