from __future__ import annotations

import copy
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file

from vaefix.convert import demo
from vaefix.convert.cache import warn_uncached
from vaefix.convert.demo import DEMO_SIZE, demo_model
from vaefix.convert.synthetic import FILES, write_sdxl
from vaefix.convert.synthetic_weights import DECODER_INFLATION, ENCODER_INFLATION
from vaefix.runtime.errors import ResourceError, VaefixWarning

FP16_MAX = 65504.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ill(cache: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(demo_model(cache) / "vae", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def healthy(cache: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(demo_model(cache, healthy=True) / "vae", torch_dtype=torch.float32).eval()


@pytest.fixture(autouse=True)
def unsaid() -> None:
    """As in a new process: what is said once is said again."""
    warn_uncached.cache_clear()


def latents(seed: int) -> torch.Tensor:
    """float32 [2, 4, 12, 8] with the statistics that the decoder sees: one over the scaling factor."""
    return torch.randn(2, 4, 12, 8, generator=torch.Generator().manual_seed(seed)) / 0.13025


def picture(seed: int) -> torch.Tensor:
    """float32 [1, 3, 64, 96] in [-1, 1]."""
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed)).mul(0.5).clamp(-1, 1)


def stream_peak(model: torch.nn.Module, run: object, *args: torch.Tensor) -> float:
    """The largest absmax in front of any GroupNorm."""
    peaks: list[float] = []

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        peaks.append(float(inputs[0].abs().max()))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
    run(*args)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    assert peaks
    return max(peaks)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_inflation_leaves_every_fp32_bit_of_the_vae_unchanged(ill: AutoencoderKL, healthy: AutoencoderKL, seed: int) -> None:
    assert torch.equal(ill.decode(latents(seed)).sample, healthy.decode(latents(seed)).sample)
    x = picture(seed)
    assert torch.equal(ill.encode(x).latent_dist.parameters, healthy.encode(x).latent_dist.parameters)


@torch.no_grad()
def test_the_ill_vae_is_lost_in_real_half_and_its_healthy_twin_is_not(ill: AutoencoderKL, healthy: AutoencoderKL) -> None:
    z, x = latents(0), picture(0)
    lost, sound = copy.deepcopy(ill).half(), copy.deepcopy(healthy).half()
    assert lost.decode(z.half()).sample.isnan().all()
    assert lost.encode(x.half()).latent_dist.parameters.isnan().all()
    for got, want in (
        (sound.decode(z.half()).sample, healthy.decode(z).sample),
        (sound.encode(x.half()).latent_dist.parameters, healthy.encode(x).latent_dist.parameters),
    ):
        assert got.isfinite().all()
        assert (got.float() - want).norm() <= 4e-3 * want.norm()


@torch.no_grad()
def test_the_stream_peaks_far_beyond_fp16_only_in_the_ill_vae(ill: AutoencoderKL, healthy: AutoencoderKL) -> None:
    z, x = latents(1), picture(1)
    assert stream_peak(ill, ill.decode, z) > 64 * FP16_MAX
    assert stream_peak(ill, ill.encode, x) > 4 * FP16_MAX
    assert stream_peak(healthy, healthy.decode, z) < FP16_MAX / 16
    assert stream_peak(healthy, healthy.encode, x) < FP16_MAX / 16


def test_twins_differ_by_powers_of_two_within_the_range_of_fp16(cache: Path) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    ill, healthy = load_file(demo_model(cache) / name), load_file(demo_model(cache, healthy=True) / name)
    exponents = set()
    for key, tensor in ill.items():
        assert tensor.isfinite().all(), key
        ratio = tensor.float() / healthy[key].float()
        exponents.add(float(ratio[healthy[key] != 0].log2().unique().item()))
    assert exponents == {0.0, float(ENCODER_INFLATION), float(DECODER_INFLATION)}


@torch.no_grad()
def test_decoded_pictures_have_structure_and_are_not_saturated(ill: AutoencoderKL) -> None:
    decoded = ill.decode(latents(2)).sample
    assert decoded.shape == (2, 3, 96, 64)
    assert 0.2 < float(decoded.std()) < 0.8
    assert float((decoded.abs() > 1).float().mean()) < 0.2
    neighbours = torch.nn.functional.l1_loss(decoded[..., 1:], decoded[..., :-1])
    assert float(neighbours) < 0.5 * float(decoded.std())


def test_the_same_bytes_are_written_twice(tmp_path: Path, cache: Path) -> None:
    write_sdxl(tmp_path, DEMO_SIZE)
    for name in FILES:
        assert digest(tmp_path / name) == digest(demo_model(cache) / name), name
    assert sum((tmp_path / name).stat().st_size for name in FILES) < 16 << 20


def test_another_seed_gives_other_weights(tmp_path: Path, cache: Path) -> None:
    write_sdxl(tmp_path, DEMO_SIZE, seed=1)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert digest(tmp_path / name) != digest(demo_model(cache) / name)


def test_a_complete_copy_is_reused_and_an_incomplete_one_replaced(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / demo_model(cache).name
    shutil.copytree(demo_model(cache), folder)
    before = folder.stat().st_ino
    assert demo_model(tmp_path) == folder
    assert folder.stat().st_ino == before
    (folder / "vae" / "config.json").unlink()
    assert demo_model(tmp_path) == folder
    assert all((folder / name).is_file() for name in FILES)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "nothing staged is left behind"


@pytest.mark.parametrize("folder", [None, "file", "file/cache"])
def test_without_a_cache_the_same_model_is_made_for_the_process(tmp_path: Path, cache: Path, folder: str | None) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.warns(VaefixWarning, match="nothing is cached"):
        made = demo_model(None if folder is None else tmp_path / folder)
    assert tmp_path not in made.parents
    kept = demo_model(cache)
    assert {name: digest(made / name) for name in FILES} == {name: digest(kept / name) for name in FILES}
    assert (tmp_path / "file").read_text() == "precious"


def test_model_of_the_process_goes_with_it() -> None:
    code = "from vaefix.convert.demo import _folder_of_this_process as f; (f() / 'x').touch(); assert f() == f(); print(f())"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert Path(result.stdout.strip()).name.startswith("vaefix-")
    assert not Path(result.stdout.strip()).exists()


def test_demo_model_that_can_be_written_nowhere_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(demo, "_folder_of_this_process", lambda: tmp_path / "file")
    with pytest.warns(VaefixWarning), pytest.raises(ResourceError, match="the demo model cannot be written") as error:
        demo_model(None)
    assert "--model" in (error.value.remedy or "")


def test_the_pipeline_of_diffusers_draws_a_picture_that_depends_on_prompt_and_guidance(cache: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(demo_model(cache), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, guidance: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 5, "guidance_scale": guidance, "width": 64, "height": 96}
        return pipeline(prompt, generator=generator, output_type="latent", **settings).images

    first = draw("a cat in the snow", 7.5)
    assert first.shape == (1, 4, 12, 8)
    assert first.isfinite().all()
    assert 0.5 < float(first.std()) < 8, "the ordinary scale of latents"
    assert torch.equal(first, draw("a cat in the snow", 7.5))
    for other in (draw("a red house", 7.5), draw("a cat in the snow", 1.0)):
        assert (first - other).norm() > 0.05 * first.norm()


def test_text_is_tokenised_by_merges_and_ends_with_the_highest_token(cache: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(demo_model(cache), unet=None, vae=None)
    for tokenizer, pad in ((pipeline.tokenizer, DEMO_SIZE.vocabulary - 1), (pipeline.tokenizer_2, 0)):
        ids = tokenizer("A cat, and cafés!", padding="max_length", max_length=77, truncation=True).input_ids
        assert len(ids) == 77
        assert ids[0] == DEMO_SIZE.vocabulary - 2
        assert DEMO_SIZE.vocabulary - 1 in ids
        assert ids[-1] == pad
        words = tokenizer("and", add_special_tokens=False).input_ids
        assert len(words) < 3, "merged"
        assert tokenizer.decode(ids, skip_special_tokens=True).startswith("a cat")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
