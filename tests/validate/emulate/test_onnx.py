"""onnx.py and kernels.py: exact 16-bit rounding of what is typed so, and only of what a kernel writes to memory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vaefix.runtime.artifact import Artifact
from vaefix.runtime.errors import ArtifactError, DeviceError, RequestError
from vaefix.validate.emulate import EmulatedSession, Mode, emulate
from vaefix.validate.emulate.canary import survives
from vaefix.validate.emulate.onnx import written_values

F32, F16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
NARROW = {"f16": F16, "bf16": BF16}
TWO = np.float32([[2]])


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], output, **attributes)


def save(path: Path, nodes: Sequence[NodeProto], *, rank: int = 2, weights: dict[str, object] | None = None) -> Path:
    """A graph from `x` to `y`, both f32; it has `h`, x in f16, and its nodes make `r`, whose f32 is y. Weights are f16."""
    ends = [helper.make_tensor_value_info(name, F32, [None] * rank) for name in "xy"]
    stored = [numpy_helper.from_array(np.asarray(value, np.float16), name) for name, value in (weights or {}).items()]
    every = [node("Cast", "x", "h", to=F16), *nodes, node("Cast", "r", "y", to=F32)]
    return save_graph(path, helper.make_graph(every, "small", ends[:1], ends[1:], stored))


def save_graph(path: Path, graph: onnx.GraphProto, *, domain: str = "") -> Path:
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
    return path


def run(path: Path, values: np.ndarray, mode: Mode = "each") -> np.ndarray:
    return emulate(path, {"x": values}, mode)["y"]


def half(values: object) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float16).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- the rounding


@pytest.mark.parametrize("dtype", [np.float16, helper.tensor_dtype_to_np_dtype(BF16)])
def test_the_canary_accepts_exact_rounding_only(dtype: type) -> None:
    def rounding(change: Callable[[np.ndarray], np.ndarray]) -> bool:
        with np.errstate(over="ignore"):
            return survives(lambda values: change(values * 2) / 8, dtype)

    limit = np.float32(65504 if dtype == np.float16 else 3.38e38)
    assert rounding(lambda values: values.astype(dtype).astype(np.float32))
    assert not rounding(lambda values: values)
    assert not rounding(lambda values: np.clip(values, -limit, limit).astype(dtype).astype(np.float32))
    assert not rounding(lambda values: (values * np.float32(1 + 2**-9)).astype(dtype).astype(np.float32))
    assert not rounding(lambda values: values.astype(np.float16 if dtype != np.float16 else np.float32).astype(np.float32))


def test_without_a_working_rounding_there_is_no_emulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(exact: str, result: str, dtype: int) -> Iterator[NodeProto]:
        """A pair that ONNX Runtime takes for its own, and removes."""
        name = f"InsertedPrecisionFreeCast_{result}"
        yield helper.make_node("Cast", [exact], [name], name, to=dtype)
        yield helper.make_node("Cast", [name], [result], f"{name}/widen", to=F32)

    path = save(tmp_path / "model.onnx", [node("Mul", "h h", "r")])
    assert run(path, TWO * 200) == np.inf
    monkeypatch.setattr("vaefix.validate.emulate.onnx._round_trip", removed)
    with pytest.raises(DeviceError, match="cannot be emulated"):
        EmulatedSession(path)


@pytest.mark.parametrize("name", NARROW)
def test_rounding_is_bit_exact_for_any_float32(tmp_path: Path, name: str) -> None:
    dtype = NARROW[name]
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    in_range = (random.standard_normal(200_000) * 2.0 ** random.integers(-26, 17, 200_000)).astype(np.float32)
    halfway = np.arange(1, 0x7B00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (halfway[1:] + halfway[:-1]) / 2
    values = np.concatenate([patterns, in_range, halfway, -halfway])
    values = np.where((np.abs(values) < 2.0**-126) & (values != 0), np.float32(0), values)  # CPUs may flush these
    ends = [helper.make_tensor_value_info(end, F32, [None]) for end in "xy"]
    nodes = [node("Cast", "x", "r", to=dtype), node("Cast", "r", "y", to=F32)]
    session = EmulatedSession(save_graph(tmp_path / "model.onnx", helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    assert session.precision == f"emulated {name}"
    with np.errstate(all="ignore"):
        expected = values.astype(helper.tensor_dtype_to_np_dtype(dtype)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"x": values})["y"], expected)


def test_every_step_of_a_chain_is_rounded(tmp_path: Path) -> None:
    """Elementwise chains are what an optimiser likes to fuse, and with it the roundings in between."""
    steps = [node("Mul", "h a", "s"), node("Mul", "s b", "t"), node("Add", "t c", "u"), node("Sqrt", "u", "v")]
    factors = {"a": 3.3, "b": 0.7, "c": 1.9, "d": -2.1}
    path = save(tmp_path / "chain.onnx", [*steps, node("Mul", "v d", "r")], rank=1, weights=factors)
    values = np.abs(np.random.default_rng(1).standard_normal(5000)).astype(np.float32) * 100
    a, b, c, d = (half(factor) for factor in factors.values())
    np.testing.assert_array_equal(run(path, values), half(half(np.sqrt(half(half(half(half(values) * a) * b) + c))) * d))


# ---------------------------------------------------------------------------------------------------- what is rounded


def test_what_the_graph_computes_in_f32_stays_in_f32(tmp_path: Path) -> None:
    def graph(dtype: int) -> list[NodeProto]:
        """40000 h * 40000 h / h in one type, between f16 values."""
        return [
            node("Cast", "h", "wide", to=dtype),
            node("Cast", "factor", "wide_factor", to=dtype),
            node("Mul", "wide wide_factor", "large"),
            node("Div", "large wide_factor", "small"),
            node("Cast", "small", "r", to=F16),
        ]

    path = save(tmp_path / "island.onnx", graph(F32), weights={"factor": 40000})
    assert run(path, TWO) == 2
    path = save(tmp_path / "narrow.onnx", graph(F16), weights={"factor": 40000})
    assert run(path, TWO) == np.inf


def test_what_only_moves_is_not_rounded_again(tmp_path: Path) -> None:
    moves = [node("Transpose", "h", "t"), node("Reshape", "t shape", "s"), node("Concat", "s s", "c", axis=0)]
    path = save(tmp_path / "moves.onnx", [node("Constant", "", "shape", value_ints=[-1, 1]), *moves, node("Mul", "c c", "r")])
    assert written_values(onnx.load(path), "each", source="") == {"h": F16, "r": F16}


def test_an_input_in_f16_is_rounded(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, F16, [None]) for name in "xy"]
    path = save_graph(tmp_path / "f16.onnx", helper.make_graph([node("Identity", "x", "y")], "g", ends[:1], ends[1:]))
    np.testing.assert_array_equal(run(path, np.float32([2049, 70000])), [2048, np.inf])


def test_attention_keeps_its_scores_in_f32(tmp_path: Path) -> None:
    path = save(tmp_path / "attention.onnx", [node("Attention", "h h h", "r", scale=1.0)], rank=4)
    values = np.float32([300, 300, -300, 300]).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(run(path, values), values)  # of scores of 180000 and 0
    path = save(
        tmp_path / "product.onnx", [node("MatMul", "h h", "s"), node("Mul", "s inverse", "r")], weights={"inverse": 2**-9}
    )
    assert run(path, np.full((2, 2), 300, np.float32)).max() == np.inf


# ------------------------------------------------------------------------------------------------------ fused kernels


def test_a_bias_is_added_in_the_accumulator_of_a_fused_kernel(tmp_path: Path) -> None:
    nodes = [node("MatMul", "h w", "p"), node("Add", "p b", "r")]
    path = save(tmp_path / "bias.onnx", nodes, weights={"w": [[40000]], "b": [-30000]})
    assert run(path, TWO) == np.inf  # 80000 is written before the bias brings it down
    assert run(path, TWO, "fused") == half(50000)


@pytest.mark.parametrize("following", [[node("Relu", "b", "r")], [node("Sigmoid", "b", "s"), node("Mul", "b s", "r")]])
def test_an_activation_follows_in_the_same_kernel(tmp_path: Path, following: list[NodeProto]) -> None:
    nodes = [node("MatMul", "h w", "p"), node("Add", "p bias", "b"), *following]
    path = save(tmp_path / "small.onnx", nodes, weights={"w": [[-40000]], "bias": [8]})
    assert run(path, TWO, "fused") == 0
    path = save(tmp_path / "large.onnx", nodes, weights={"w": [[40000]], "bias": [8]})
    assert run(path, TWO, "fused") == np.inf  # what the kernel writes is beyond fp16 all the same


def test_a_product_with_something_else_is_no_silu(tmp_path: Path) -> None:
    nodes = [node("MatMul", "h w", "p"), node("Sigmoid", "p", "s"), node("Mul", "p h", "q"), node("Mul", "q s", "r")]
    path = save(tmp_path / "other.onnx", nodes, weights={"w": [[-40000]]})
    assert not np.isfinite(run(path, TWO, "fused"))


def test_a_residual_add_takes_in_the_side_computed_last_only(tmp_path: Path) -> None:
    weights = {"w": [[40000]], "v": [[-40000]], "f": [[-20000]]}
    nodes = [node("Mul", "h f", "q"), node("MatMul", "h w", "p"), node("Add", "q p", "r")]
    path = save(tmp_path / "one.onnx", nodes, weights=weights)
    assert run(path, TWO) == np.inf
    assert run(path, TWO, "fused") == 40000
    nodes = [node("MatMul", "h v", "q"), node("MatMul", "h w", "p"), node("Add", "q p", "r")]
    assert not np.isfinite(run(save(tmp_path / "both.onnx", nodes, weights=weights), TWO, "fused"))


def test_a_value_with_two_readers_is_written(tmp_path: Path) -> None:
    nodes = [node("MatMul", "h w", "p"), node("Add", "p b", "q"), node("Mul", "p f", "s"), node("Concat", "q s", "r", axis=0)]
    path = save(tmp_path / "readers.onnx", nodes, weights={"w": [[40000]], "b": [-30000], "f": [0.5]})
    assert np.isinf(run(path, TWO, "fused")).all()


NORM = [node("LayerNormalization", "h scale", "n", axis=-1), node("Reshape", "n shape", "m")]
AFFINE = [node("Mul", "m gamma", "g"), node("Add", "g beta", "b")]
SILU = [node("Sigmoid", "b", "s"), node("Mul", "b s", "r")]
SHAPE = node("Constant", "", "shape", value_ints=[1, -1])


def written(path: Path, mode: Mode) -> set[str]:
    return {*written_values(onnx.load(path), mode, source="")}


def test_a_normalisation_its_scale_and_shift_and_an_activation_are_one_kernel(tmp_path: Path) -> None:
    weights = {"scale": np.ones(4), "gamma": np.full(4, 60000), "beta": np.full(4, -60000)}
    path = save(tmp_path / "norm.onnx", [SHAPE, *NORM, *AFFINE, *SILU], weights=weights)
    assert written(path, "each") == {"h", "n", "g", "b", "s", "r"}
    assert written(path, "fused") == {"h", "r"}
    values = np.float32([[1, 1, 1, 5]])  # normalised, the last is 1.73: 103923 before the shift
    assert np.isinf(run(path, values)).any()
    assert np.isfinite(run(path, values, "fused")).all()


def test_where_no_kernel_goes_on_behind_its_reshape_a_normalisation_is_written(tmp_path: Path) -> None:
    path = save(
        tmp_path / "norm.onnx", [SHAPE, *NORM, node("MatMul", "m w", "r")], weights={"scale": np.ones(4), "w": np.eye(4)}
    )
    assert written(path, "fused") == {"h", "n", "r"}


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def broken(demo_artifact_onnx_cuda: Artifact, tmp_path: Path) -> Path:
    """The folder of a component, to be damaged."""
    return Path(shutil.copytree(demo_artifact_onnx_cuda.folder / "vae_decoder", tmp_path / "vae_decoder"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.onnx").unlink(),
        lambda folder: (folder / "model.onnx").write_bytes(b"junk"),
        lambda folder: (folder / "model.onnx_data").unlink(),
        lambda folder: (folder / "model.onnx_data").write_bytes(bytes(5000)),
    ],
    ids=["no graph", "junk", "no data", "short data"],
)
def test_an_unreadable_graph_is_an_artifact_error(broken: Path, damage: Callable[[Path], None]) -> None:
    damage(broken)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        EmulatedSession(broken / "model.onnx")


def test_a_graph_without_16_bit_values_is_refused(demo_artifact_onnx_cpu: Artifact) -> None:
    with pytest.raises(ArtifactError, match="nothing in 16 bits"):
        EmulatedSession(demo_artifact_onnx_cpu.folder / "vae_decoder" / "model.onnx")


def test_a_graph_with_a_body_is_refused(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, F16, [None]) for name in "xy"]
    body = helper.make_graph([node("Identity", "x", "z")], "body", [], [helper.make_tensor_value_info("z", F16, [None])])
    nodes = [node("Constant", "", "c", value=numpy_helper.from_array(np.array(True)))]
    nodes.append(node("If", "c", "y", then_branch=body, else_branch=body))
    path = save_graph(tmp_path / "body.onnx", helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    with pytest.raises(ArtifactError, match="If"):
        EmulatedSession(path)


def test_a_value_of_unknown_type_is_refused(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, F32, [None]) for name in "xy"]
    nodes = [helper.make_node("Strange", ["x"], ["hidden"], domain="other"), node("Cast", "hidden", "y", to=F32)]
    path = save_graph(tmp_path / "strange.onnx", helper.make_graph(nodes, "g", ends[:1], ends[1:]), domain="other")
    with pytest.raises(ArtifactError, match="hidden"):
        EmulatedSession(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"\.pt"):
        EmulatedSession(tmp_path / "model.pt")


def test_feeds_that_do_not_fit_are_named(tmp_path: Path) -> None:
    session = EmulatedSession(save(tmp_path / "model.onnx", [node("MatMul", "h w", "r")], weights={"w": [[1]]}))
    with pytest.raises(DeviceError, match=r"x \[3, 5\]"):
        session.run({"x": np.ones((3, 5), np.float32)})
    with pytest.raises(RequestError, match="fed z"):
        session.run({"z": TWO})


def test_an_engine_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "vaefix.validate.emulate.onnx")
    with pytest.raises(DeviceError, match=r"pip install 'vaefix\[onnx\]'"):
        EmulatedSession(tmp_path / "model.onnx")
