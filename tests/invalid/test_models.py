"""Models that cannot be converted: exit code 3, the file and the reason, and nothing written, whatever the target."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaefix.convert.cli import app

from .conftest import TARGETS, Folder

DEEP = b"[" * 200_000 + b"]" * 200_000
UNET, VAE, TEXT, TEXT_2 = (f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2"))
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX, SCHEDULER, TOKENIZER = "model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"
Case = tuple[str, Callable[[Folder], object], str]


def entry(file: str, reason: str, **values: Any) -> Case:
    """The file that the error must name, the change, and words of the reason."""
    return file, lambda model: model.change(file, values), reason


def raw(file: str, data: bytes, reason: str) -> Case:
    return file, lambda model: model.write(file, data), reason


def link(file: str, target: str, reason: str) -> Case:
    return file, lambda model: model.link(file, target), reason


def pipe(file: str) -> Case:
    return file, lambda model: model.pipe(file), "unreadable.*not a file"


def component(reason: str, **entries: Any) -> Case:
    return entry(INDEX, reason, **entries)


def header(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


INDICES: dict[str, Case] = {
    "an index nested deep": raw(INDEX, DEEP, "nested too deep"),
    "an index in UTF-16": raw(INDEX, '{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "an index with a byte order mark": raw(INDEX, b"\xef\xbb\xbf{}", "BOM"),
    "an empty index": raw(INDEX, b"", "not valid JSON"),
    "an index that is a list": raw(INDEX, b"[]", "not a JSON object"),
    "a pipeline class in a list": component("unknown pipeline class", _class_name=["StableDiffusionXLPipeline"]),
    "a component of three": component("expected a library and a class", unet=["diffusers", "UNet2DConditionModel", 1]),
    "a component of none": component("expected a library and a class", unet=[]),
    "a component of numbers": component("expected a library and a class", vae=[1, 2]),
    "a nested component": component("expected a library and a class", vae=[["diffusers"], "AutoencoderKL"]),
    "half a component": component("expected a library and a class", vae=[None, "AutoencoderKL"]),
    "a component that is a text": component("component vae is missing", vae="AutoencoderKL"),
    "a component that is a path": component("is a path", **{"../vae": ["diffusers", "AutoencoderKL"]}),
    "a scheduler that is no name": component("expected a library and a class", scheduler=["diffusers", {"a": 1}]),
}
BUILT: dict[str, Case] = {
    "an unknown block": entry(
        UNET, "cannot build", down_block_types=["DownBlock9D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    ),
    "an unknown activation": entry(VAE, "cannot build", act_fn="sine"),
    "an unknown activation of a text encoder": entry(TEXT, "cannot build", hidden_act="sine"),
    "groups that do not divide": entry(VAE, "cannot build", norm_num_groups=3),
    "heads that do not divide": entry(TEXT, "cannot build", num_attention_heads=3),
    "no heads": entry(TEXT_2, "cannot build", num_attention_heads=0),
    "lists of other lengths": entry(UNET, "cannot build", block_out_channels=[32, 64]),
    "classes of pictures": entry(UNET, "cannot trace.*class_labels", class_embed_type="identity"),
    "an embedding of classes": (
        WEIGHTS,
        lambda model: model.change(UNET, {"class_embed_type": "timestep"}),
        "class_embedding.linear_1.weight is missing",
    ),
    "a text for a number": entry(UNET, "cannot build", layers_per_block="2"),
    "a text for a width": entry(TEXT, "hidden_size is '32'", hidden_size="32"),
    "a fraction for a number": entry(UNET, "cannot build", layers_per_block=2.5),
    "a number for a list": entry(UNET, "block_out_channels is '32'", block_out_channels=32),
    "a number for the VAE's list": entry(VAE, "block_out_channels is '32'", block_out_channels=32),
    "no levels": entry(VAE, "block_out_channels is", block_out_channels=[]),
    "negative channels": entry(UNET, "block_out_channels is", block_out_channels=[8, 8, -16]),
    "true for a number": entry(UNET, "in_channels is 'True'", in_channels=True),
    "too many channels": entry(UNET, "block_out_channels is", block_out_channels=[8, 8, 10**9]),
    "a number of 400 digits": entry(VAE, "latent_channels is", latent_channels=10**400),
    "endless layers of a text encoder": entry(TEXT, "num_hidden_layers is", num_hidden_layers=10**9),
    "many layers of a text encoder": entry(TEXT, "cannot build.*parameters", num_hidden_layers=90_000),
    "endless layers of a UNet": entry(UNET, "cannot build.*parameters", layers_per_block=10**9),
    "endless layers of a VAE": entry(VAE, "cannot build.*parameters", layers_per_block=10**9),
    "endless transformer layers": entry(UNET, "cannot build.*parameters", transformer_layers_per_block=[1, 1, 10**9]),
    "an epsilon that is a text": entry(TEXT, "cannot (build|trace)", layer_norm_eps="tiny"),
    "an activation that is a list": entry(TEXT, "'hidden_act': .+", hidden_act=["gelu"]),
    "NaN": entry(UNET, "NaN or Infinity", norm_eps=float("nan")),
    "Infinity": entry(TEXT, "NaN or Infinity", layer_norm_eps=float("inf")),
    "a null for a list": entry(UNET, "cannot build", up_block_types=None),
}
VALUES: dict[str, Case] = {
    **{
        f"a scaling factor of {value!r}": entry(VAE, "scaling_factor is|NaN or Infinity", scaling_factor=value)
        for value in (0, "x", -0.13, None, True, float("nan"), [0.13], 10**400)
    },
    "means for other channels": entry(VAE, "latents_mean is", latents_mean=[0.0] * 3),
    "means that are texts": entry(VAE, "latents_mean is", latents_mean=["0"] * 4),
    "a UNet for inpainting": entry(UNET, "a UNet for inpainting", in_channels=9),
    "a UNet that edits": entry(UNET, "edits pictures", in_channels=8),
    "a UNet with other outputs": entry(UNET, "out_channels is 8", out_channels=8),
    "the UNet of another model": entry(UNET, "the text encoders give 96", cross_attention_dim=768),
    "other embeddings of the time": entry(UNET, "the text encoders give", addition_time_embed_dim=256),
    "an end of the prompt before the vocabulary": entry(TEXT, "eos_token_id is '-1'", eos_token_id=-1),
    "a size that is a text": entry(UNET, "sample_size is '16'", sample_size="16"),
    "a negative size": entry(UNET, "sample_size is", sample_size=-16),
    "a config nested deep": raw(UNET, DEEP, "nested too deep"),
    "a config in Latin-1": raw(TEXT, '{"a": "é"}'.encode("latin-1"), "not UTF-8"),
    "an empty config": raw(VAE, b"", "not valid JSON"),
    "a config that is a number": raw(VAE, b"3", "not a JSON object"),
    "a number of 9000 digits": raw(UNET, b'{"a": 1' + b"0" * 9000 + b"}", "not valid JSON"),
    "a config that is a folder": (UNET, lambda model: model.folder(UNET), "unreadable"),
    "a config that leads nowhere": link(UNET, "../../blobs/gone", "a link to ../../blobs/gone"),
    "a config that leads in a circle": link(UNET, "config.json", "unreadable"),
}
FILES: dict[str, Case] = {
    "weights that are a folder": (WEIGHTS, lambda model: model.folder(WEIGHTS), "unreadable"),
    "weights that lead nowhere": link(WEIGHTS, "../../blobs/gone", "unreadable"),
    "weights that lead in a circle": link(WEIGHTS, "diffusion_pytorch_model.safetensors", "unreadable"),
    "weights that are a pipe": pipe(WEIGHTS),
    "a config that is a pipe": pipe(TEXT),
    "a model that was converted": (
        "",
        lambda model: model.write("vaefix.json", "{}"),
        "a converted artifact already",
    ),
    "empty weights": raw(WEIGHTS, b"", "not a safetensors file"),
    "a header nested deep": raw(WEIGHTS, header(DEEP), "nested too deep"),
    "a header that is not UTF-8": raw(WEIGHTS, header(b'{"\xff": {}}'), "not UTF-8"),
    "a type that is a list": raw(WEIGHTS, header(b'{"a":{"dtype":[],"shape":[1],"data_offsets":[0,2]}}') + b"00", "dtype"),
}
DRAWING: dict[str, Case] = {
    "a scheduler nested deep": raw(SCHEDULER, DEEP, "nested too deep"),
    "an empty scheduler": raw(SCHEDULER, b"", "not valid JSON"),
    "a scheduler that leads nowhere": link(SCHEDULER, "../blobs/gone", "a link to"),
    "a scheduler of another kind": (
        SCHEDULER,
        lambda model: model.change(INDEX, {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}),
        "FlowMatchEulerDiscreteScheduler cannot draw",
    ),
    "an unknown schedule": entry(SCHEDULER, "cannot draw.*sine", beta_schedule="sine"),
    "an unknown prediction": entry(SCHEDULER, "cannot draw.*x0", prediction_type="x0"),
    "an unknown spacing": entry(SCHEDULER, "cannot draw.*wide", timestep_spacing="wide"),
    "negative steps": entry(SCHEDULER, "cannot draw", num_train_timesteps=-1000),
    "endless steps": entry(SCHEDULER, "cannot draw.*more than", num_train_timesteps=10**9),
    "betas that are texts": entry(SCHEDULER, "cannot draw", beta_start="small"),
    "an empty vocabulary": raw("tokenizer/vocab.json", b"{}", "no tokenizer"),
    "a vocabulary nested deep": raw("tokenizer/vocab.json", DEEP, "vocab.json: .*nested too deep"),
    "a vocabulary with a byte order mark": raw("tokenizer/vocab.json", b"\xef\xbb\xbf{}", "vocab.json: .*BOM"),
    "a vocabulary that is a pipe": pipe("tokenizer/vocab.json"),
    "a file that only the library knows, a pipe": pipe("tokenizer/chat_template.jinja"),
    "special tokens in a list": raw("tokenizer/special_tokens_map.json", b"[1]", "special_tokens_map.json: not a JSON object"),
    "a scheduler that is a pipe": pipe(SCHEDULER),
    "steps that are a text": entry(SCHEDULER, r"but expected one of: \S", num_train_timesteps="1000"),
    "no merges": raw("tokenizer/merges.txt", b"", "no merge makes"),
    "merges cut short": raw("tokenizer/merges.txt", b"#version: 0.2\na b\n", "no merge makes"),
    "merges that lead nowhere": link("tokenizer/merges.txt", "../../blobs/gone", "a link to"),
    "merges that lead in a circle": link("tokenizer/merges.txt", "merges.txt", "unreadable"),
    "a tokenizer of another kind": entry(TOKENIZER, "a T5Tokenizer", tokenizer_class="T5Tokenizer"),
    "a tokenizer without end": entry(TOKENIZER, "model_max_length is", model_max_length=10**30),
    "a tokenizer for more tokens": entry(TOKENIZER, "77 positions", model_max_length=200),
    "a tokenizer whose length is a text": entry(TOKENIZER, "model_max_length|no tokenizer", model_max_length="77"),
    "a tokenizer's config nested deep": raw(TOKENIZER, DEEP, "nested too deep"),
    "an empty tokenizer.json": raw("tokenizer/tokenizer.json", b"{}", "no tokenizer"),
    "tokens beyond the text encoder's": raw("tokenizer/added_tokens.json", b'{"<new>": 2048}', "id 2048"),
}
CASES = {**INDICES, **BUILT, **VALUES, **FILES, **DRAWING}


def component_of(file: str) -> str:
    """A component whose conversion needs the file."""
    part = file.partition("/")[0]
    return {"vae": "vae_decoder", "tokenizer": "text_encoder"}.get(part, part if "text" in part else "unet")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_an_invalid_model_is_refused_by_file(
    case: str, target: str, model: Folder, cache_folder: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file, spoil, reason = CASES[case]
    spoil(model)
    part = file.partition("/")[0]
    before = model.state()
    given = ("--model", model.path, "--target", target, "--components", component_of(file), "--cache", cache_folder)
    message = refused(app, *given, "-o", tmp_path / "out")
    assert str(model.path / ("tokenizer" if part == "tokenizer" else file)) in message
    assert re.search(reason, message), message
    assert model.state() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
