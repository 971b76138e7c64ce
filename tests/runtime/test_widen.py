"""A 16-bit graph on a CPU is the same function in float32, its weights still read from where they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.widen import NARROW, widened

NARROW_ARTIFACTS = ["demo_artifact_onnx_cuda", "demo_artifact_onnx_bf16"]
COMPONENTS = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"]


def _graph(artifact: Artifact, component: str) -> onnx.ModelProto:
    return onnx.load(artifact.folder / component / "model.onnx", load_external_data=False)


def _small(dtype: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """y = cast(x) * 0.1 + 60000 + 60000 - 60000, which is Inf in f16; edges f16."""
    ports = [helper.make_tensor_value_info(name, dtype, [2]) for name in "xy"]
    constants = [
        helper.make_tensor(name, dtype, [1], np.array([value], np.float32)) for name, value in (("a", 0.1), ("b", 60000.0))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["x16"], to=dtype),
        helper.make_node("Mul", ["x16", "a"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["t"]),
        helper.make_node("Add", ["t", "b"], ["u"]),
        helper.make_node("Sub", ["u", "b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("artifact", NARROW_ARTIFACTS)
def test_nothing_is_computed_in_sixteen_bits(artifact: str, component: str, request: pytest.FixtureRequest) -> None:
    narrow = _graph(request.getfixturevalue(artifact), component)
    wide = onnx.shape_inference.infer_shapes(widened(narrow), strict_mode=True)
    stored = {tensor.name for tensor in wide.graph.initializer if tensor.data_type in NARROW}
    types = {value.name: value.type.tensor_type.elem_type for value in (*wide.graph.value_info, *wide.graph.output)}
    rows = {name for node in wide.graph.node if node.op_type == "Gather" for name in node.output if node.input[0] in stored}
    assert stored
    assert {name for name, kind in types.items() if kind in NARROW} <= rows, "only rows of a table, which a Cast then widens"
    for node in wide.graph.node:
        assert node.op_type in ("Cast", "Gather") or stored.isdisjoint(node.input)


@pytest.mark.parametrize("artifact", NARROW_ARTIFACTS)
def test_stored_weights_and_the_given_graph_stay_as_they_are(artifact: str, request: pytest.FixtureRequest) -> None:
    narrow = _graph(request.getfixturevalue(artifact), "vae_decoder")
    before = narrow.SerializeToString()
    wide = widened(narrow)
    assert narrow.SerializeToString() == before

    def external(model: onnx.ModelProto) -> list[bytes]:
        tensors = (tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
        return [tensor.SerializeToString() for tensor in tensors]

    assert external(wide) == external(narrow) != []
    assert [port.name for port in (*wide.graph.input, *wide.graph.output)] == ["latent_sample", "sample"]


def test_a_float32_graph_stays_as_it_is(demo_artifact_onnx_cpu: Artifact) -> None:
    model = _graph(demo_artifact_onnx_cpu, "unet")
    assert widened(model).SerializeToString(True) == model.SerializeToString(True)


@pytest.mark.parametrize("dtype", NARROW)
def test_values_beyond_sixteen_bits_survive_and_constants_keep_their_rounding(dtype: int) -> None:
    wide = widened(_small(dtype))
    values = np.array([1.0, 70000.0], np.float32)
    (result,) = ReferenceEvaluator(wide).run(None, {"x": values})
    a, b = (numpy_helper.to_array(tensor) for tensor in wide.graph.initializer)
    assert (a.dtype, b.dtype, result.dtype) == (np.float32,) * 3
    assert a[0] != np.float32(0.1)
    assert np.array_equal(result, values * a + b + b - b)
    with np.errstate(over="ignore"):
        (overflowed,) = ReferenceEvaluator(_small()).run(None, {"x": np.array([1.0, 2.0], np.float16)})
    assert np.isinf(overflowed).all(), "otherwise the above shows nothing"
