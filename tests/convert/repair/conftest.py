"""Tiny seeded models of the real architectures, captured, with what it takes to run them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from vaefix.convert.capture import capture
from vaefix.convert.execute import Observer, execute
from vaefix.convert.program import Input, Op, Program
from vaefix.convert.repair.identity import scaled_weights
from vaefix.convert.repair.plan import Range, ScalePlan, WeightStatistics, apply_to_program
from vaefix.convert.repair.ranges import activation_ranges, weight_statistics

BATCH, LATENT_SIDE = 8, 4
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
}


@dataclass(frozen=True)
class Network:
    """A captured component with its weights. sample: seed -> inputs, and the values of buffers."""

    program: Program
    tensors: dict[str, torch.Tensor]
    sample: Callable[[int], Mapping[str, torch.Tensor]]

    def weights(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def run(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs in float32."""
        return list(execute(self.program, self.weights, inputs).values())

    def run_half(self, inputs: Mapping[str, torch.Tensor], observe: Observer | None = None) -> list[torch.Tensor]:
        """The outputs of real torch half arithmetic, as float32."""
        casts = json.dumps(self.program.to_json()).replace("dtype:float32", "dtype:float16")
        program = Program.from_json(json.loads(casts))
        feeds = {name: value.half() if value.is_floating_point() else value for name, value in inputs.items()}
        outputs = execute(program, lambda name: self.tensors[name].half(), feeds, observe)
        return [output.float() for output in outputs.values()]

    def overflows_in_half(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """Whether an operation gives a value that is not finite; stops at the first."""

        def observe(op: Op, output: torch.Tensor) -> None:
            if output.is_floating_point() and not output.isfinite().all():
                raise OverflowError(op.path)

        try:
            self.run_half(inputs, observe)
        except OverflowError:
            return True
        return False

    def scaled(self, plan: ScalePlan) -> Network:
        """The network that the plan makes of this one."""
        scaled = scaled_weights(self.weights, plan)
        return Network(apply_to_program(self.program, plan), {name: scaled(name) for name in self.tensors}, self.sample)

    def measured(self) -> tuple[dict[str, Range], dict[str, WeightStatistics]]:
        """Ranges on two calibration inputs, and weight statistics."""
        inputs = [self.sample(seed) for seed in (100, 101)]
        return activation_ranges(self.program, self.weights, inputs), weight_statistics(self.program, self.weights)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors run fastest, and reproducibly, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _network(
    build: Callable[[], torch.nn.Module],
    forward: Callable[..., object],
    inputs: list[Input],
    outputs: list[str],
    sample: Callable[[torch.Generator], dict[str, torch.Tensor]],
) -> Network:
    torch.manual_seed(0)
    tensors = {name: value.detach() for name, value in build().named_parameters(remove_duplicate=False)}
    wrapper = type("Wrapper", (torch.nn.Module,), {"forward": forward})()
    with torch.device("meta"):
        wrapper.model = build()
    program = capture(wrapper, inputs, outputs, "model")
    names = [parameter.name for parameter in program.parameters.values()]
    return Network(program, {name: tensors[name] for name in names}, lambda seed: sample(torch.Generator().manual_seed(seed)))


def _vae(other_half: tuple[str, str]) -> AutoencoderKL:
    vae = AutoencoderKL(**VAE)
    for name in other_half:
        delattr(vae, name)
    return vae


@pytest.fixture(scope="session")
def vae_decoder() -> Network:
    shape = (BATCH, 4, LATENT_SIDE, LATENT_SIDE)
    return _network(
        lambda: _vae(("encoder", "quant_conv")),
        lambda self, latent: self.model.decode(latent, return_dict=False)[0],
        [Input("latent_sample", "float32", (None, 4, None, None))],
        ["sample"],
        lambda generator: {"latent_sample": torch.randn(shape, generator=generator)},
    )


@pytest.fixture(scope="session")
def vae_encoder() -> Network:
    shape = (BATCH, 3, 8 * LATENT_SIDE, 8 * LATENT_SIDE)
    return _network(
        lambda: _vae(("decoder", "post_quant_conv")),
        lambda self, sample: self.model.quant_conv(self.model.encoder(sample)),
        [Input("sample", "float32", (None, 3, None, None))],
        ["latent_parameters"],
        lambda generator: {"sample": torch.rand(shape, generator=generator) * 2 - 1},
    )


@pytest.fixture(scope="session")
def text_encoder() -> Network:
    config = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return _network(
        lambda: CLIPTextModelWithProjection(CLIPTextConfig(**config, projection_dim=32, hidden_act="gelu", eos_token_id=99)),
        lambda self, ids: self.model(ids, position_ids=torch.arange(ids.shape[1]).unsqueeze(0))[:2],
        [Input("input_ids", "int64", (None, None))],
        ["text_embeds", "last_hidden_state"],
        lambda generator: {"input_ids": torch.randint(0, 100, (2, 9), generator=generator)},
    )


@pytest.fixture(scope="session")
def unet() -> Network:
    def build() -> torch.nn.Module:
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
            norm_num_groups=4,
        )

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.model(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]

    return _network(
        build,
        forward,
        [
            Input("sample", "float32", (None, 4, None, None)),
            Input("timestep", "int64", (None,)),
            Input("encoder_hidden_states", "float32", (None, None, 32)),
            Input("text_embeds", "float32", (None, 32)),
            Input("time_ids", "float32", (None, 6)),
        ],
        ["out_sample"],
        lambda generator: {
            "sample": torch.randn(2, 4, 8, 8, generator=generator),
            "timestep": torch.tensor([500]),
            "encoder_hidden_states": torch.randn(2, 7, 32, generator=generator),
            "text_embeds": torch.randn(2, 32, generator=generator),
            "time_ids": torch.full((2, 6), 64.0),
        },
    )


@pytest.fixture(scope="session")
def t5_encoder() -> Network:
    config = T5Config(
        vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0
    )
    return _network(
        lambda: T5EncoderModel(config),
        lambda self, ids: self.model(ids)[0],
        [Input("input_ids", "int64", (None, None))],
        ["last_hidden_state"],
        lambda generator: {
            "input_ids": torch.randint(0, 100, (2, 9), generator=generator),
            "c_model_encoder_lifted_tensor_0": torch.tensor(0.0),
        },
    )


@pytest.fixture(scope="session")
def sd3_transformer() -> Network:
    def build() -> torch.nn.Module:
        return SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        )

    positions = dict(build().named_buffers())["pos_embed.pos_embed"]
    return _network(
        build,
        lambda self, sample, text, pooled, timestep: self.model(sample, text, pooled, timestep, return_dict=False)[0],
        [
            Input("sample", "float32", (None, 4, None, None)),
            Input("encoder_hidden_states", "float32", (None, None, 32)),
            Input("pooled_projections", "float32", (None, 64)),
            Input("timestep", "float32", (None,)),
        ],
        ["out_sample"],
        lambda generator: {
            "sample": torch.randn(2, 4, 8, 8, generator=generator),
            "encoder_hidden_states": torch.randn(2, 7, 32, generator=generator),
            "pooled_projections": torch.randn(2, 64, generator=generator),
            "timestep": torch.tensor([500.0, 20.0]),
            "b_model_pos_embed_pos_embed": positions,
        },
    )
