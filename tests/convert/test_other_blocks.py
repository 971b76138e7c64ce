"""UNets of other blocks than SDXL's: what diffusers builds is converted, on both engines, and computes the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel

from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.program import Input, Op, Parameter, Program, Ref

TWO_LEVELS: dict[str, Any] = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 1],
    "layers_per_block": 1,
}
OTHERS: dict[str, dict[str, Any]] = {
    "weights that are not used": {"attention_type": "gated"},
    "time as scale and shift": {"resnet_time_scale_shift": "scale_shift"},  # OpenVINO 2026.4 dies of it where sizes are known
    "mish": {"act_fn": "mish"},
    "resnets that change the size": {
        "down_block_types": ["ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    },
}


@pytest.mark.parametrize("target", [pytest.param("openvino-cpu", marks=pytest.mark.slow), "onnx-cpu"])
@pytest.mark.parametrize(
    "name", ["weights that are not used", *(pytest.param(name, marks=pytest.mark.slow) for name in [*OTHERS][1:])]
)
def test_a_unet_of_other_blocks_is_converted(
    name: str, target: str, demo_model: Path, cache_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(demo_model, tmp_path / "model"))
    config = {**json.loads((model / "unet" / "config.json").read_text()), **TWO_LEVELS, **OTHERS[name]}
    shutil.rmtree(model / "unet")
    UNet2DConditionModel.from_config(config).save_pretrained(model / "unet")
    artifact = convert(ConvertOptions(tmp_path / "out", model, target, {"*": "fp32"}, components=("unet",), cache=cache_folder))
    assert artifact.parity["unet"]["outputs"] == "equal"


def test_parameters_that_nothing_reads_are_left_out() -> None:
    parameters = {"p_a": Parameter("a", (4,)), "p_b": Parameter("b", (4,))}
    ops = (Op("add", "aten.add.Tensor", (Ref("x"), Ref("p_b")), {}, "", "float32", (None, 4)),)
    program = Program(parameters, (Input("x", "float32", (None, 4)),), ops, (("y", "add"),))
    assert program.without_unread().parameters == {"p_b": parameters["p_b"]}
