"""The causal mask of transformers 4, added to the scores where that of transformers 5 is boolean, on both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov
import pytest
import torch

from vaefix.convert.capture import capture
from vaefix.convert.execute import execute, static_values
from vaefix.convert.program import Input, Program
from vaefix.convert.repair.plan import ScalePlan
from vaefix.convert.repair.rules import constraints
from vaefix.convert.targets.onnx.graph import Form, build
from vaefix.convert.targets.openvino.graph import lower
from vaefix.convert.targets.openvino.skeleton import fill
from vaefix.runtime.widen import widened


class Causal(torch.nn.Module):
    """Attention under a mask made as `AttentionMaskConverter` makes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.shape[1]
        mask = torch.full((tokens, tokens), torch.finfo(x.dtype).min)
        positions = torch.arange(tokens)
        mask.masked_fill_(positions < (positions + 1).view(tokens, 1), 0)
        mask = mask[None, None].expand(x.shape[0], 1, tokens, tokens)
        heads = x.view(x.shape[0], tokens, 2, 4).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)


@pytest.fixture(scope="module", params=[None, 5], ids=["any length", "one length"])
def program(request: pytest.FixtureRequest) -> Program:
    return capture(Causal(), [Input("x", "float32", (None, request.param, 8))], ["y"])


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 5, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(x: np.ndarray) -> np.ndarray:
    values: np.ndarray = Causal()(torch.from_numpy(x)).numpy()
    assert np.ptp(values[:, :, 0]) > 1  # the first token sees itself alone, not the mean of all
    return values


def test_what_overwrites_its_own_tensor_is_captured_out_of_place(program: Program, x: np.ndarray, expected: np.ndarray) -> None:
    assert not any(op.target.partition(".")[2].partition(".")[0].endswith("_") for op in program.ops)
    for _ in range(2):
        (found,) = execute(program, dict[str, torch.Tensor]().__getitem__, {"x": torch.from_numpy(x)}).values()
        assert np.array_equal(found.numpy(), expected)


def test_what_overwrites_a_tensor_that_is_read_again_stays_in_place() -> None:
    class Shared(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.full(x.shape, 2.0)
            view = mask.view(-1, 4)
            return x + mask.masked_fill_(x == 1, 0) + view

    targets = [op.target for op in capture(Shared(), [Input("x", "float32", (None, 4))], ["y"]).ops]
    assert "aten.masked_fill_.Scalar" in targets


def test_openvino_computes_it(program: Program, x: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    skeleton = lower(program)
    (tmp_path / "m.xml").write_text("".join(fill(skeleton, {}, {}, ScalePlan(), {})))
    (tmp_path / "m.bin").write_bytes(skeleton.constants)
    compiled = ov.Core().compile_model(tmp_path / "m.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled({"x": x})[0], expected, atol=1e-6)


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize(("execution", "tolerance"), [("f32", 1e-6), ("f16", 2e-3)])
def test_onnx_computes_it(
    program: Program, x: np.ndarray, expected: np.ndarray, opset: int, execution: str, tolerance: float
) -> None:
    constants = {name: value.numpy() for name, value in static_values(program).items()}
    form = Form(storage={}, execution=execution, io="f32", opset=opset, in_f32=frozenset(), axes={})
    model = widened(build(program, constants, ScalePlan(), form).model([]))  # a CPU has no kernels in 16 bits
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=tolerance)


def test_the_repair_leaves_the_mask_unscaled(program: Program) -> None:
    fixed = constraints(program).fixed
    masks = {op.name for op in program.ops if op.target in ("aten.full.default", "aten.masked_fill.Scalar")}
    assert masks
    assert masks <= fixed
