"""Faults in stored weights: each shows in its component, and is named at its layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from safetensors.numpy import load_file, save_file

from ..stored import reseal, stored_weight
from .fault import FIRST_OUTPUT, ONNX, OPENVINO, OPENVINO_F32, Fault, Patient, Plant

Change = Callable[[np.ndarray], None]


def nan(weight: np.ndarray) -> None:
    weight.flat[weight.size // 2] = np.nan


def infinity(weight: np.ndarray) -> None:
    weight.flat[0] = np.inf


def swapped_channels(weight: np.ndarray) -> None:
    weight[[0, 1]] = weight[[1, 0]]


def two_percent(weight: np.ndarray) -> None:
    weight[:] = weight * weight.dtype.type(1.02)


def dropped(weight: np.ndarray) -> None:
    weight[:] = 0


def transposed(weight: np.ndarray) -> None:
    weight[:] = weight.swapaxes(-1, -2).copy()


def column_major(weight: np.ndarray) -> None:
    weight[:] = weight.T.reshape(weight.shape)


def rows_shifted(weight: np.ndarray) -> None:
    weight[:] = np.roll(weight, 1, axis=0)


def halves_exchanged(weight: np.ndarray) -> None:
    weight[:] = np.roll(weight, len(weight) // 2, axis=0)


def doubled(weight: np.ndarray) -> None:
    weight[:] = 2 * weight


def negated(weight: np.ndarray) -> None:
    weight[:] = -weight


def other_endian(weight: np.ndarray) -> None:
    weight[:] = weight.byteswap()


def one_bit(weight: np.ndarray) -> None:
    """The lowest bit of the exponent, of a number of middling size."""
    flat = weight.reshape(-1)
    index = np.argsort(np.abs(flat))[flat.size // 2]
    flat.view(np.uint16)[index] ^= 1 << 10


def as_int8(weight: np.ndarray) -> None:
    scale = np.abs(weight).max() / 127
    weight[:] = np.round(weight / scale) * scale


def as_bf16(weight: np.ndarray) -> None:
    bits = weight.astype(np.float32).view(np.uint32)
    weight[:] = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def as_fp16(weight: np.ndarray) -> None:
    weight[:] = weight.astype(np.float16)


def without_small_numbers(weight: np.ndarray) -> None:
    weight[np.abs(weight) < 2**-6] = 0


def without_last_channel(weight: np.ndarray) -> None:
    weight[-1] = 0


def _in(
    base: str,
    component: str,
    parameter: str,
    change: Change,
    name: str,
    *,
    drawn: str | None = None,
) -> Fault:
    def plant(patient: Patient) -> None:
        patient.change_weight(component, parameter, change)

    layer = parameter.rpartition(".")[0]
    return Fault(name, base, component, plant, f"parity {FIRST_OUTPUT[component]}", layer=layer, drawn=drawn)


def _exchanged(component: str, one: str, other: str) -> Plant:
    def plant(patient: Patient) -> None:
        first, second = (stored_weight(patient.artifact, component, name) for name in (one, other))
        first[:], second[:] = second.copy(), first.copy()
        reseal(patient.artifact)

    return plant


def _zero_tail(patient: Patient) -> None:
    def cut(data: np.ndarray) -> None:
        data[-len(data) // 10 :] = 0

    patient.change_weights_file("vae_encoder", cut)


def _shifted_file(patient: Patient) -> None:
    """As after an upload that lost its beginning."""

    def shift(data: np.ndarray) -> None:
        data[:-64] = data[64:].copy()

    patient.change_weights_file("text_encoder", shift)


def _of_another_seed(component: str) -> Plant:
    return lambda patient: patient.replace_weights(component, patient.convert(patient.model(seed=1), component))


def _fp16_where_fp32_was_promised(patient: Patient) -> None:
    """The demo model's own weights are fp16, so they are made longer."""
    model = patient.model()
    file = model / "text_encoder" / "model.safetensors"
    random = np.random.default_rng(0)
    longer = {
        name: weight * random.uniform(1, 1.001, weight.shape).astype(np.float32) for name, weight in load_file(file).items()
    }
    save_file(longer, file)
    patient.artifact = patient.convert(model, "text_encoder")
    patient.options = replace(patient.options, artifact=patient.artifact.folder, load_reference=None, reference=model)
    patient.change_weight("text_encoder", f"{_CLIP}.mlp.fc2.weight", as_fp16)


def _moments_exchanged(patient: Patient) -> None:
    for name in ("weight", "bias"):
        patient.change_weight("vae_encoder", f"quant_conv.{name}", halves_exchanged)


_MID = "decoder.mid_block.resnets.0"
_ENCODER_ATTENTION = "encoder.mid_block.attentions.0"
_UNET_BLOCK = "up_blocks.0.attentions.0.transformer_blocks.1"
_CLIP = "text_model.encoder.layers.1"
_EMBEDDINGS = "text_model.embeddings"

WEIGHT_FAULTS = (
    _in(OPENVINO, "vae_decoder", "decoder.up_blocks.2.resnets.0.conv1.weight", nan, "a weight is NaN"),
    _in(ONNX, "vae_decoder", "decoder.up_blocks.2.resnets.0.conv1.weight", nan, "a weight is NaN"),
    _in(ONNX, "unet", "down_blocks.0.resnets.1.conv1.weight", infinity, "a weight is infinite"),
    _in(OPENVINO, "vae_decoder", "decoder.conv_out.weight", swapped_channels, "two channels exchanged", drawn="picture"),
    _in(OPENVINO, "text_encoder_2", "text_projection.weight", swapped_channels, "two channels exchanged"),
    _in(ONNX, "text_encoder_2", "text_projection.weight", swapped_channels, "two channels exchanged", drawn="text_embeds"),
    _in(OPENVINO, "text_encoder", f"{_CLIP}.self_attn.q_proj.weight", two_percent, "a scale wrong by 2%"),
    _in(ONNX, "text_encoder", f"{_CLIP}.self_attn.q_proj.weight", two_percent, "a scale wrong by 2%"),
    _in(OPENVINO, "unet", f"{_UNET_BLOCK}.attn1.to_k.weight", two_percent, "a scale wrong by 2%"),
    _in(OPENVINO, "vae_encoder", f"{_ENCODER_ATTENTION}.to_q.weight", two_percent, "a scale wrong by 2%"),
    _in(ONNX, "vae_encoder", f"{_ENCODER_ATTENTION}.to_q.weight", two_percent, "a scale wrong by 2%"),
    _in(OPENVINO, "vae_decoder", "decoder.up_blocks.3.resnets.2.conv1.weight", two_percent, "a scale wrong by 2%"),
    _in(OPENVINO, "text_encoder_2", f"{_CLIP}.self_attn.q_proj.bias", dropped, "a bias dropped"),
    _in(OPENVINO, "vae_encoder", "quant_conv.bias", dropped, "a bias dropped"),
    _in(OPENVINO, "unet", "up_blocks.0.resnets.0.norm2.bias", dropped, "a norm's bias dropped"),
    _in(ONNX, "unet", "up_blocks.0.resnets.0.norm2.bias", dropped, "a norm's bias dropped"),
    _in(OPENVINO, "vae_decoder", "decoder.conv_norm_out.bias", dropped, "a norm's bias dropped"),
    _in(ONNX, "unet", "conv_out.weight", transposed, "a kernel's height and width exchanged"),
    _in(ONNX, "text_encoder_2", f"{_CLIP}.self_attn.out_proj.weight", transposed, "a square matrix transposed"),
    _in(ONNX, "vae_decoder", "decoder.up_blocks.3.resnets.0.conv1.weight", column_major, "a weight read column by column"),
    _in(ONNX, "text_encoder", f"{_EMBEDDINGS}.position_embedding.weight", rows_shifted, "positions shifted by one"),
    _in(OPENVINO, "text_encoder_2", f"{_EMBEDDINGS}.token_embedding.weight", rows_shifted, "tokens shifted by one"),
    _in(ONNX, "vae_decoder", f"{_MID}.conv2.weight", doubled, "a repaired weight's exponent off by one"),
    _in(OPENVINO, "vae_encoder", "encoder.down_blocks.1.resnets.0.conv_shortcut.bias", doubled, "a bias's exponent off by one"),
    _in(ONNX, "unet", "time_embedding.linear_2.weight", negated, "a weight's sign lost"),
    _in(ONNX, "text_encoder", f"{_CLIP}.mlp.fc1.weight", other_endian, "a weight of the other endianness"),
    _in(ONNX, "vae_encoder", "encoder.conv_in.weight", one_bit, "one bit of one weight"),
    _in(ONNX, "vae_decoder", "decoder.up_blocks.1.resnets.1.conv1.weight", as_int8, "a weight rounded to int8"),
    _in(ONNX, "text_encoder_2", f"{_CLIP}.mlp.fc2.weight", as_bf16, "a weight rounded to bf16"),
    _in(ONNX, "unet", "down_blocks.1.attentions.0.proj_in.weight", without_small_numbers, "small weights flushed to zero"),
    _in(ONNX, "vae_decoder", "post_quant_conv.weight", without_last_channel, "a latent channel lost"),
    _in(ONNX, "unet", "add_embedding.linear_1.weight", without_last_channel, "time_ids lose a frequency"),
    Fault(
        "a weight in fp16 where fp32 was promised",
        OPENVINO_F32,
        "text_encoder",
        _fp16_where_fp32_was_promised,
        "parity last_hidden_state",
        layer=f"{_CLIP}.mlp.fc2",
    ),
    Fault(
        "keys and queries exchanged",
        OPENVINO,
        "vae_encoder",
        _exchanged("vae_encoder", f"{_ENCODER_ATTENTION}.to_q.weight", f"{_ENCODER_ATTENTION}.to_k.weight"),
        "parity latent_parameters",
        layer=f"{_ENCODER_ATTENTION}.to_q",
    ),
    Fault(
        "the weights of two layers exchanged",
        ONNX,
        "text_encoder",
        _exchanged("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight", f"{_CLIP}.mlp.fc1.weight"),
        "parity last_hidden_state",
        layer="text_model.encoder.layers.0.mlp.fc1",
    ),
    Fault(
        "a norm's weight and bias exchanged",
        ONNX,
        "text_encoder_2",
        _exchanged("text_encoder_2", "text_model.final_layer_norm.weight", "text_model.final_layer_norm.bias"),
        "parity text_embeds",
        layer="text_model.final_layer_norm",
    ),
    Fault(
        "mean and variance of the latents exchanged",
        ONNX,
        "vae_encoder",
        _moments_exchanged,
        "parity latent_parameters",
        layer="quant_conv",
    ),
    Fault("a file cut short and filled with zeros", ONNX, "vae_encoder", _zero_tail, "parity latent_parameters"),
    Fault("a file shifted by 64 bytes", ONNX, "text_encoder", _shifted_file, "parity last_hidden_state"),
    Fault("the file of another seed", OPENVINO, "text_encoder_2", _of_another_seed("text_encoder_2"), "parity text_embeds"),
    Fault("the file of another seed", ONNX, "unet", _of_another_seed("unet"), "parity out_sample"),
)
