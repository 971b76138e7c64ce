"""What diffusers users do to a pipeline: it works as they know it, or says what holds and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from vaefix.runtime.errors import RequestError
from vaefix.runtime.modules import Vae
from vaefix.runtime.pipeline import load_pipeline

Pipeline = diffusers.StableDiffusionXLPipeline
Shapes = list[tuple[int, ...]]


@pytest.fixture
def decoded(converted: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shapes]:
    """The shapes that the decoder's session is fed with; tiles and slices are off again afterwards."""
    shapes: Shapes = []
    session = converted.vae.session

    def run_tensors(feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        shapes.append(tuple(feeds["latent_sample"].shape))
        return session.run_tensors(feeds)

    watched = {"run_tensors": run_tensors, "tensor_device": "cpu", "precision": session.precision, "device": session.device}
    monkeypatch.setattr(converted.vae, "session", SimpleNamespace(**watched))
    yield shapes
    converted.vae.disable_tiling()
    converted.vae.disable_slicing()


def _drawn(pipeline: Pipeline, side: int = 192, images: int = 1) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in range(images)]
    arguments = {"height": side, "width": side, "num_images_per_prompt": images, "generator": generators}
    pictures: np.ndarray = pipeline("a red cat", num_inference_steps=1, output_type="np", **arguments).images
    return pictures


def test_tiles_of_the_pipeline_are_those_of_the_vae_and_draw_nearly_the_same(converted: Pipeline, decoded: Shapes) -> None:
    whole = _drawn(converted)
    converted.enable_vae_tiling()
    tiled = _drawn(converted)
    assert decoded == [(1, 4, 24, 24), *[(1, 4, 16, 16)] * 4]
    assert converted.vae.use_tiling
    assert 0 < np.abs(tiled - whole).mean() < 0.1 * np.abs(whole - whole.mean()).mean()
    converted.disable_vae_tiling()
    assert np.array_equal(_drawn(converted), whole)


def test_slices_decode_one_picture_at_a_time_and_draw_the_same(converted: Pipeline, decoded: Shapes) -> None:
    together = _drawn(converted, 64, 3)
    converted.enable_vae_slicing()
    sliced = _drawn(converted, 64, 3)
    assert decoded == [(3, 4, 8, 8), *[(1, 4, 8, 8)] * 3]
    assert np.abs(sliced - together).max() < 1e-5
    converted.disable_vae_slicing()
    _drawn(converted, 64, 3)
    assert decoded[-1] == (3, 4, 8, 8)


def test_tiles_and_slices_work_together_and_by_the_names_of_diffusers(converted: Pipeline, decoded: Shapes) -> None:
    vae = converted.vae
    reference = diffusers.AutoencoderKL(**{key: value for key, value in vae.config.items() if not key.startswith("_")})
    assert (vae.tile_latent_min_size, vae.tile_sample_min_size) == (16, 128)
    assert (reference.tile_latent_min_size, reference.tile_sample_min_size) == (16, 128)
    vae.enable_slicing()
    vae.enable_tiling()
    vae.tile_sample_min_size = 64
    try:
        assert vae.tile_latent_min_size == 8
        with torch.no_grad():
            vae.decode(torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0)))
        assert decoded == [(1, 4, 8, 8)] * 4
        vae.tile_latent_min_size = 1
        with pytest.raises(RequestError, match="tiles of 1 latent pixels"):
            vae.decode(torch.zeros(1, 4, 8, 12))
    finally:
        vae.tile_latent_min_size = 16
    vae.enable_tiling(False)
    assert not vae.use_tiling


def test_pictures_are_encoded_in_tiles_and_slices_too(converted: Pipeline, decoded: Shapes) -> None:
    pictures = torch.rand(2, 3, 192, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        whole = converted.vae.encode(pictures).latent_dist.mean
        converted.vae.enable_slicing()
        assert (converted.vae.encode(pictures).latent_dist.mean - whole).abs().max() < 1e-4
        converted.vae.enable_tiling()
        tiled = converted.vae.encode(pictures).latent_dist.mean
    assert tiled.shape == whole.shape == (2, 4, 24, 16)
    assert 0 < (tiled - whole).abs().mean() < 0.2 * whole.std()


def test_a_model_of_larger_pictures_has_tiles_of_64() -> None:
    session = SimpleNamespace(tensor_device="cpu")
    config = {"block_out_channels": [16] * 4, "sample_size": 1024}
    assert Vae(config, session, lambda: session).tile_latent_min_size == 64
    assert Vae(config, session, lambda: session, tile=32).tile_latent_min_size == 32


WEIGHTS = "for the modules and weights of PyTorch load the original"
DEVICE = r"load_pipeline\(folder, device="
LORA = "merge it into the original model"
LESS_MEMORY = r"Thrift\(one_at_a_time=True\)"
REFUSED: dict[str, tuple[Callable[[Pipeline], object], str]] = {
    "to cuda": (lambda p: p.to("cuda"), DEVICE),
    "to a card": (lambda p: p.to(torch.device("cuda", 1)), DEVICE),
    "to GPU": (lambda p: p.to("GPU"), DEVICE),
    "to xpu": (lambda p: p.to(device="xpu"), DEVICE),
    "to float16": (lambda p: p.to(torch.float16), "--precision fp16"),
    "to cpu in bfloat16": (lambda p: p.to("cpu", torch.bfloat16), "--precision fp16"),
    "a module to cuda": (lambda p: p.unet.to("cuda"), DEVICE),
    "half": (lambda p: p.unet.half(), "--precision fp16"),
    "bfloat16": (lambda p: p.vae.bfloat16(), "--precision fp16"),
    "cuda": (lambda p: p.text_encoder.cuda(), DEVICE),
    "parameters": (lambda p: list(p.unet.parameters()), WEIGHTS),
    "first parameter": (lambda p: next(p.vae.parameters()), WEIGHTS),
    "training": (lambda p: p.unet.requires_grad_(True), WEIGHTS),
    "state_dict": (lambda p: p.unet.state_dict(), WEIGHTS),
    "load_state_dict": (lambda p: p.unet.load_state_dict({}), "vaefix-convert"),
    "a module's save_pretrained": (lambda p: p.unet.save_pretrained("saved"), WEIGHTS),
    "save_pretrained": (lambda p: p.save_pretrained("saved"), "copy the folder"),
    "push_to_hub": (lambda p: p.push_to_hub("a/b"), "copy the folder"),
    "load_lora_weights": (lambda p: p.load_lora_weights("lora"), LORA),
    "fuse_lora": (lambda p: p.fuse_lora(), LORA),
    "set_adapters": (lambda p: p.set_adapters("a"), LORA),
    "unload_lora_weights": (lambda p: p.unload_lora_weights(), LORA),
    "a LoRA's scale": (lambda p: p("a cat", cross_attention_kwargs={"scale": 0.5}), LORA),
    "load_ip_adapter": (lambda p: p.load_ip_adapter("a"), "original model"),
    "image embeddings": (lambda p: p("a cat", ip_adapter_image_embeds=[torch.zeros(2, 1, 4)]), "original model"),
    "load_textual_inversion": (lambda p: p.load_textual_inversion("a"), "original model"),
    "enable_model_cpu_offload": (lambda p: p.enable_model_cpu_offload(), LESS_MEMORY),
    "enable_sequential_cpu_offload": (lambda p: p.enable_sequential_cpu_offload(), LESS_MEMORY),
    "enable_group_offload": (lambda p: p.enable_group_offload(torch.device("cpu")), LESS_MEMORY),
    "enable_freeu": (lambda p: p.enable_freeu(0.9, 0.2, 1.1, 1.2), WEIGHTS),
    "enable_forward_chunking": (lambda p: p.unet.enable_forward_chunking(), WEIGHTS),
    "fuse_qkv_projections": (lambda p: p.fuse_qkv_projections(), WEIGHTS),
    "set_attn_processor": (lambda p: p.unet.set_attn_processor(None), WEIGHTS),
    "load_attn_procs": (lambda p: p.unet.load_attn_procs("a"), WEIGHTS),
    "a layer": (lambda p: p.unet.down_blocks, WEIGHTS),
    "embeddings": (lambda p: p.text_encoder.get_input_embeddings(), WEIGHTS),
    "layerwise casting": (lambda p: p.unet.enable_layerwise_casting(torch.float16), WEIGHTS),
}
HARMLESS: dict[str, Callable[[Pipeline], object]] = {
    "to cpu": lambda p: p.to("cpu"),
    "to float32": lambda p: p.to(torch.float32, silence_dtype_warnings=True),
    "to what it is": lambda p: p.to("cpu:0", torch.float32),
    "to a tensor's": lambda p: p.unet.to(torch.zeros(1)),
    "memory format": lambda p: p.unet.to(memory_format=torch.channels_last),
    "float": lambda p: p.vae.float(),
    "cpu": lambda p: p.vae.cpu(),
    "frozen": lambda p: p.unet.requires_grad_(False),
    "eval": lambda p: p.unet.eval(),
    "attention slicing": lambda p: p.enable_attention_slicing(),
    "xformers": lambda p: p.enable_xformers_memory_efficient_attention(),
    "hooks": lambda p: p.maybe_free_model_hooks(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_compiled_graph_cannot_do_is_refused_with_what_to_do(
    name: str, onnx_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, remedy = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=f"compiled (?s:.*)\n  remedy: .*{remedy}") as caught:
        ask(onnx_pipeline)
    assert caught.value.source
    assert list(tmp_path.iterdir()) == []
    assert (onnx_pipeline.device, onnx_pipeline.dtype) == (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_picture_does_nothing(name: str, onnx_pipeline: Pipeline) -> None:
    result = HARMLESS[name](onnx_pipeline)
    assert result is None or isinstance(result, (Pipeline, torch.nn.Module))
    assert (onnx_pipeline.device, onnx_pipeline.dtype) == (torch.device("cpu"), torch.float32)


def test_what_is_not_there_can_be_asked_for(onnx_pipeline: Pipeline) -> None:
    """Libraries look for attributes: a refusal must look like a missing one."""
    assert not hasattr(onnx_pipeline.unet, "down_blocks")
    assert getattr(onnx_pipeline.vae, "encoder", None) is None
    onnx_pipeline.unet.own = torch.nn.Identity()
    assert isinstance(onnx_pipeline.unet.own, torch.nn.Identity)
    del onnx_pipeline.unet.own
    with pytest.raises(AttributeError, match="a compiled graph has no own"):
        _ = onnx_pipeline.unet.own


def test_a_pipeline_on_a_card_is_there_already() -> None:
    vae = Vae({}, SimpleNamespace(tensor_device="cuda:1", device="CUDA:1", precision="f16"), lambda: None)
    assert vae.to("cuda:1") is vae.to("cuda") is vae.to("CUDA:1") is vae
    for other in ("cuda:0", "cpu", "GPU"):
        with pytest.raises(RequestError, match=f"cannot move to {other}"):
            vae.to(other)


@pytest.mark.slow  # it imports every pipeline that diffusers has
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("auto", "sibling"),
    [
        ("AutoPipelineForImage2Image", "StableDiffusionXLImg2ImgPipeline"),
        ("AutoPipelineForInpainting", "StableDiffusionXLInpaintPipeline"),
        ("AutoPipelineForText2Image", "StableDiffusionXLPipeline"),
    ],
)
def test_diffusers_finds_the_siblings_of_the_pipeline_by_its_name(auto: str, sibling: str, onnx_pipeline: Pipeline) -> None:
    made = getattr(diffusers, auto).from_pipe(onnx_pipeline)
    assert isinstance(made, getattr(diffusers, sibling))
    assert made.unet is onnx_pipeline.unet


@pytest.mark.parametrize("sibling", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"])
def test_siblings_draw_and_refuse_as_it_does(sibling: str, onnx_pipeline: Pipeline) -> None:
    painter: Any = getattr(diffusers, sibling).from_pipe(onnx_pipeline)
    painter.set_progress_bar_config(disable=True)
    arguments = {"image": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))}
    if "Inpaint" in sibling:
        arguments |= {"mask_image": torch.ones(1, 1, 64, 64), "height": 64, "width": 64}
    pictures = painter("a cat", num_inference_steps=2, strength=0.9, output_type="np", **arguments).images
    assert np.ptp(pictures) > 0.1
    with pytest.raises(RequestError, match="cannot become float16"):
        painter.to(torch.float16)
    with pytest.raises(RequestError, match="cannot move to cuda"):
        painter.to("cuda")


def test_it_is_a_pipeline_of_diffusers(demo_artifact_fp32: Any) -> None:
    pipeline = load_pipeline(demo_artifact_fp32.folder)
    assert isinstance(pipeline, diffusers.StableDiffusionXLPipeline)
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"


def test_a_model_whose_pictures_are_not_square_draws_its_own_size(
    onnx_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = onnx_pipeline.unet.config
    monkeypatch.setattr(onnx_pipeline.unet, "config", type(config)({**config, "sample_size": [8, 12]}))
    assert onnx_pipeline("a red cat", num_inference_steps=1, output_type="np").images.shape == (1, 64, 96, 3)
    assert onnx_pipeline("a red cat", None, 96, num_inference_steps=1, output_type="np").images.shape == (1, 96, 96, 3)
    parameters = inspect.signature(onnx_pipeline.__call__).parameters
    assert parameters.keys() == inspect.signature(Pipeline.__call__).parameters.keys() - {"self"}
