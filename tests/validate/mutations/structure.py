"""Faults in the structure of a graph: what an exporter, an optimiser or a hand could get wrong while every weight is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from .fault import FIRST_OUTPUT, ONNX, ONNX_F32, OPENVINO, Fault, Plant

Change = Callable[[Any], None]
_FP16_MAX = 65504.0


def _graph(component: str, change: Change) -> Plant:
    return lambda patient: patient.change_graph(component, change)


def _in(
    base: str,
    component: str,
    name: str,
    change: Change,
    *,
    layer: str | None = None,
    output: str | None = None,
) -> Fault:
    first = output or FIRST_OUTPUT[component]
    return Fault(name, base, component, _graph(component, change), f"parity {first}", layer=layer)


def _unrepaired(component: str) -> Plant:
    return lambda patient: patient.replace_component(component, patient.convert(patient.model(), component, repair="never"))


def _pad_on_the_other_side(graph: Any) -> None:
    graph.bypass(f"{_DOWN}.0.downsamplers.0/pad/Pad")
    graph.set(f"{_DOWN}.0.downsamplers.0.conv/conv2d_5/Conv", pads=[1, 1, 0, 0])


def _in_fp16(graph: Any, name: str) -> None:
    graph.follow(name, ("Cast", (), {"to": onnx.TensorProto.FLOAT16}), ("Cast", (), {"to": onnx.TensorProto.FLOAT}))


def _into_subnormals(graph: Any) -> None:
    """As a repair that goes too far; the norm that follows scales back."""
    graph.follow(f"{_UP}.1.resnets.1.conv1/conv2d_15/Conv", ("Mul", np.float16([2.0**-23]), {}))
    graph.set(f"{_UP}.1.resnets.1.norm2/group_norm_14/LayerNormalization", epsilon=1e-6 * 4.0**-23)


def _tanh_everywhere(graph: Any) -> None:
    for name in graph.named("Gelu"):
        graph.set(name, approximate="tanh")


_UNET_BLOCK = "up_blocks.0.attentions.0.transformer_blocks.0"
_CLIP = "text_model.encoder.layers"
_DOWN, _UP = "encoder.down_blocks", "decoder.up_blocks"
_CLIP_ATTENTION = f"{_CLIP}.1.self_attn/scaled_dot_product_attention_1"

STRUCTURE_FAULTS = (
    _in(
        OPENVINO,
        "vae_decoder",
        "a norm's epsilon wrong by 1000",
        lambda graph: graph.set(f"{_UP}.0.resnets.0.norm2/group_norm_6/GroupNormalization", epsilon=1e-3),
        layer=f"{_UP}.0.resnets.0.norm2",
    ),
    _in(
        OPENVINO,
        "unet",
        "a norm's epsilon wrong by 1000",
        lambda graph: graph.set(f"{_UNET_BLOCK}.norm2/layer_norm_25/MVN", eps=1e-2),
    ),
    _in(
        ONNX,
        "text_encoder",
        "a norm's epsilon wrong by 1000",
        lambda graph: graph.set(f"{_CLIP}.0.layer_norm1/layer_norm/LayerNormalization", epsilon=1e-2),
        layer=f"{_CLIP}.0.layer_norm1",
    ),
    _in(
        OPENVINO,
        "unet",
        "normalised in half as many groups",
        lambda graph: graph.set("conv_norm_out/group_norm_45/GroupNormalization", num_groups=4),
    ),
    _in(
        OPENVINO,
        "vae_decoder",
        "SiLU exchanged for sigmoid",
        lambda graph: graph.retype(f"{_UP}.1.resnets.1.nonlinearity/silu_12", "Sigmoid"),
        layer=f"{_UP}.1.resnets.1.conv1",
    ),
    _in(
        OPENVINO,
        "vae_encoder",
        "SiLU exchanged for ReLU",
        lambda graph: graph.retype("encoder.conv_act/silu_20", "ReLU"),
        layer="encoder.conv_out",
    ),
    _in(
        ONNX,
        "text_encoder_2",
        "GELU by its tanh approximation",
        lambda graph: graph.set(f"{_CLIP}.0.mlp.activation_fn/gelu/Gelu", approximate="tanh"),
        layer=f"{_CLIP}.0.mlp.fc2",
    ),
    _in(
        ONNX,
        "unet",
        "every GELU by its tanh approximation",
        _tanh_everywhere,
    ),
    _in(
        OPENVINO,
        "text_encoder",
        "quick GELU without its 1.702",
        lambda graph: graph.bypass(f"{_CLIP}.1.mlp.activation_fn/mul_10"),
        layer=f"{_CLIP}.1.mlp.fc2",
    ),
    _in(
        ONNX_F32,
        "text_encoder_2",
        "softmax over the wrong axis",
        lambda graph: graph.set(f"{_CLIP_ATTENTION}/Softmax", axis=-2),
        layer=f"{_CLIP}.1.self_attn.out_proj",
    ),
    _in(
        ONNX_F32,
        "text_encoder_2",
        "attention without its scale",
        lambda graph: graph.bypass(f"{_CLIP_ATTENTION}/Mul"),
        layer=f"{_CLIP}.1.self_attn.out_proj",
    ),
    _in(
        OPENVINO,
        "text_encoder",
        "the causal mask missing",
        lambda graph: graph.feed("text_model/le_3", 1, 0),
        layer=f"{_CLIP}.0.self_attn.out_proj",
    ),
    _in(
        ONNX,
        "text_encoder",
        "the causal mask inverted",
        lambda graph: graph.retype("text_model/le_3/LessOrEqual", "GreaterOrEqual"),
        layer=f"{_CLIP}.0.self_attn.out_proj",
    ),
    _in(
        ONNX,
        "text_encoder_2",
        "keys and values exchanged",
        lambda graph: graph.exchange(f"{_CLIP}.0.self_attn/scaled_dot_product_attention/Attention", 1, 2),
        layer=f"{_CLIP}.0.self_attn.out_proj",
    ),
    _in(OPENVINO, "unet", "a residual dropped", lambda graph: graph.bypass(f"{_UNET_BLOCK}/add_49", 1)),
    _in(
        ONNX,
        "vae_decoder",
        "a residual dropped",
        lambda graph: graph.bypass(f"{_UP}.1.resnets.1/add_7/Add", 1),
        layer=f"{_UP}.1.resnets.2.norm1",  # what made the other's output is no more
    ),
    _in(
        OPENVINO,
        "vae_decoder",
        "nearest upsampling exchanged for linear",
        lambda graph: graph.set(f"{_UP}.1.upsamplers.0/upsample_nearest2d_1", mode="linear_onnx"),
        layer=f"{_UP}.1.upsamplers.0.conv",
    ),
    _in(
        ONNX,
        "unet",
        "nearest upsampling rounded to the next pixel",
        lambda graph: graph.set("up_blocks.0.upsamplers.0/upsample_nearest2d/Resize", nearest_mode="ceil"),
    ),
    _in(
        ONNX,
        "vae_encoder",
        "a downsampler that pads on the other side",
        _pad_on_the_other_side,
        layer=f"{_DOWN}.0.downsamplers.0.conv",
    ),
    _in(
        ONNX,
        "unet",
        "the halves of a GEGLU exchanged",
        lambda graph: graph.exchange(f"{_UNET_BLOCK}.ff.net.0/gelu_8/Gelu", 0, 0, f"{_UNET_BLOCK}.ff.net.0/mul_98/Mul"),
    ),
    _in(ONNX, "unet", "sine and cosine exchanged", lambda graph: graph.exchange("time_proj/cat_1/Concat", 0, 1)),
    _in(
        ONNX,
        "unet",
        "the pooled prompt after time_ids",
        lambda graph: graph.exchange("concat/Concat", 0, 1),
    ),
    _in(
        ONNX,
        "unet",
        "two skip connections exchanged",
        lambda graph: graph.exchange("up_blocks.2/cat_11/Concat", 1, 1, "up_blocks.2/cat_12/Concat"),
    ),
    _in(
        ONNX,
        "vae_decoder",
        "post_quant_conv left out",
        lambda graph: graph.bypass("post_quant_conv/conv2d/Conv"),
        layer="decoder.conv_in",
    ),
    _in(
        ONNX,
        "text_encoder",
        "the final norm left out",
        lambda graph: graph.bypass("text_model.final_layer_norm/layer_norm_4/LayerNormalization"),
    ),
    _in(
        ONNX,
        "text_encoder_2",
        "pooled from the wrong token",
        lambda graph: graph.retype("text_model/argmax/ArgMax", "ArgMin"),
    ),
    _in(
        ONNX,
        "text_encoder",
        "two outputs exchanged",
        lambda graph: graph.exchange("hidden_states.0/Cast", 0, 0, "hidden_states.1/Cast"),
        output="hidden_states.0",
    ),
    _in(
        ONNX_F32,
        "vae_decoder",
        "activations clipped to fp16's range",
        lambda graph: graph.follow(f"{_UP}.2.resnets.0/add_9/Add", ("Clip", np.float32([-_FP16_MAX, _FP16_MAX]), {})),
        layer=f"{_UP}.2.resnets.0",
    ),
    _in(
        ONNX_F32,
        "unet",
        "a layer in fp16 where fp32 was promised",
        lambda graph: _in_fp16(graph, "up_blocks.2.resnets.2.conv2/conv2d_47/Conv"),
    ),
    _in(
        ONNX_F32,
        "unet",
        "a layer in fp16 that adds little to the output",
        lambda graph: _in_fp16(graph, "up_blocks.2.resnets.0.conv1/conv2d_40/Conv"),
    ),
    Fault("not repaired", OPENVINO, "vae_decoder", _unrepaired("vae_decoder"), "emulated sample", emulate="fp16"),
    Fault(
        "scaled into fp16's subnormal numbers",
        ONNX,
        "vae_decoder",
        _graph("vae_decoder", _into_subnormals),
        "emulated sample",
        emulate="fp16",
    ),
    Fault("not repaired", ONNX, "vae_encoder", _unrepaired("vae_encoder"), "emulated latent_parameters", emulate="fp16"),
)
