"""What a component needs in memory, planned from how many weights it stores and how large the picture is.

Every figure was measured on a CPU (2 cores, AVX-512 with bf16; OpenVINO 2026.4.1, ONNX Runtime 1.31.1) as the anonymous
resident memory of a process that runs one component of SDXL's own widths, the UNet with one transformer layer in each block.
What a graphics card holds is arithmetic, not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20
_TOKENS = 77
STORED = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "i8": 1.0, "i4": 0.5, "f8e4m3": 1.0, "f8e5m2": 1.0}
"""Bytes of a weight in the file. The scales are not counted: one for each output channel, for 64 inputs in 4 bits."""


@dataclass(frozen=True)
class Model:
    """A component: its name, its `config.json`, and kind -> element type -> how many weights it stores (`ComponentEntry`)."""

    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Place:
    """Where and how it runs.

    engine: `openvino`, `onnx`.  device: `CPU`, or a card: `GPU.1`, `CUDA`.
    execution: the precision that the component was made for: `f32`, `f16`, `bf16`.
    low_memory: in a session that prefers little memory to speed.
    """

    engine: str
    device: str
    execution: str
    low_memory: bool = False

    @property
    def computed(self) -> int:
        """Bytes of a value that is computed. A CPU computes in f32, but for OpenVINO with what was made for bf16."""
        wide = self.device == "CPU" and (self.engine, self.execution) != ("openvino", "bf16")
        return 4 if wide or self.execution == "f32" else 2


@dataclass(frozen=True)
class Needs:
    """Bytes of the device's memory.

    loading: at the peak of loading it.  held: once it is loaded.  run: what a run takes besides, at its peak.
    mapped: pages of its file that every run reads where they lie. The system drops them when others need the memory, and
        reads them again: no limit on a process's own memory counts them.
    """

    loading: int
    held: int
    run: int
    mapped: int

    @property
    def peak(self) -> int:
        """The most that it ever takes, without what is mapped."""
        return max(self.loading, self.held + self.run)


@dataclass(frozen=True)
class Picture:
    """What is computed: height and width of the pictures in pixels, and how many at once.

    factor: how many pixels one of the latent is high and wide, see `vae_factor`.
    """

    height: int
    width: int
    batch: int = 1
    factor: int = 8

    @property
    def pixels(self) -> int:
        """Of all of them."""
        return self.height * self.width * self.batch

    @property
    def latent(self) -> float:
        """Pixels of one picture's latent."""
        return self.height * self.width / self.factor**2


_DEFAULT_SIDE = 128
"""Of the latent, where a UNet's config has no `sample_size`: as diffusers' pipeline has it."""


def vae_factor(vae: Mapping[str, Any]) -> int:
    """How much smaller latents are than pictures. vae: its complete config."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def latent_size(unet: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the latents that a model draws where nobody asks for others. unet: its complete config."""
    size = _DEFAULT_SIDE if unet["sample_size"] is None else unet["sample_size"]
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return height, width


def native_picture(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Picture:
    """What a model draws where nobody asks for another size. unet, vae: complete configs."""
    (height, width), factor = latent_size(unet), vae_factor(vae)
    return Picture(factor * height, factor * width, factor=factor)


def step(factor: int) -> int:
    """What the height and width of a picture must be multiples of, in pixels: a latent pixel, and for diffusers 8."""
    return max(8, factor)


_GRAPH = 64 * MIB
"""Of a loaded graph beside its weights: SDXL's UNet 62 MiB in OpenVINO, 16 MiB in ONNX Runtime."""
_LIVE: Mapping[str, Mapping[str, float]] = {
    # 512 px: UNet 217 MiB (1024 px: 868), decoder 1079 (768 px: 2409), encoder 564; in bf16 the decoder takes 531.
    "openvino": {"unet": 42, "vae_decoder": 4.3, "vae_encoder": 4.5, "text": 6},
    # 512 px: UNet 254 MiB (1024 px: 3330), decoder 2032 (768 px: 5500), encoder 902: the arena grows in powers of two.
    "onnx": {"unet": 10, "vae_decoder": 6.7, "vae_encoder": 4.5, "text": 6},
    # 512 px: UNet 375 MiB with 236 of weights (1024 px: 1437), decoder 1025 (256 px: 256), encoder 518. Weights stay in the
    # mapped file: in low-memory sessions, and in all of a graph that holds codes.
    "onnx, frugal": {"unet": 8, "vae_decoder": 3.5, "vae_encoder": 3, "text": 6},
    # Not measured: what must be alive at once. In 16 bits 1024 px: UNet 170 MB, decoder 1610 MB.
    "card": {"unet": 16, "vae_decoder": 3, "vae_encoder": 3, "text": 6},
}
"""How many tensors of a component's widest layer are alive at the peak of a run."""
_ATTENTION: Mapping[str, float] = {"openvino": 0, "onnx": 5.2, "onnx, frugal": 2, "card": 1}
"""How many matrices of token by token; OpenVINO on a CPU never has a whole one. From the same runs."""


def needs_of(model: Model, place: Place, picture: Picture) -> Needs:
    """What one component takes of its device's memory. Every text encoder is fed 77 tokens."""
    on_cpu = place.device == "CPU"
    frugal = place.engine == "onnx" and ((on_cpu and place.low_memory) or _has_codes(model))
    engine = ("onnx, frugal" if frugal else place.engine) if on_cpu else "card"
    values = _LIVE[engine]["text" if model.name.startswith("text") else model.name] * _widest(model, picture)
    values += _ATTENTION[engine] * _attention(model, picture)
    if frugal:
        values += 2 * _largest(model)  # weights are expanded as they are used: the largest, and the next one
    run = round(place.computed * values)
    if not on_cpu:
        held = round(_sum(model, lambda kind, element: _on_card(place, kind, element)))
        return Needs(held, held, run, 0)
    held = _GRAPH + (0 if frugal else round(_sum(model, lambda kind, element: _on_cpu(place, kind, element))))
    loading = _GRAPH + (0 if frugal else round(_sum(model, lambda kind, element: _loading(place, kind, element))))
    mapped = round(_sum(model, lambda kind, element: 0 if kind == "table" else STORED[element])) if frugal else 0
    return Needs(loading, held, run, mapped)


def _has_codes(model: Model) -> bool:
    return any(STORED[element] < 2 for types in model.weights.values() for element in types)


def _sum(model: Model, each: Callable[[str, str], float]) -> float:
    """The bytes of all weights; each: those of one, by kind and element type."""
    return sum(count * each(kind, element) for kind, types in model.weights.items() for element, count in types.items())


def _on_card(place: Place, kind: str, element: str) -> float:
    """ONNX Runtime keeps codes as they are; OpenVINO those of 8 and 4 bit integers in a Linear. The rest is as it computes."""
    kept = place.engine == "onnx" or (kind == "linear" and element in ("i8", "i4"))
    return STORED[element] if kept and STORED[element] < 2 else place.computed


def _on_cpu(place: Place, kind: str, element: str) -> float:
    """Bytes of anonymous memory that one weight takes while its component is loaded."""
    if kind == "table":  # its rows are read from the file
        return 0
    if place.engine == "onnx":
        return 4  # packed in f32
    if STORED[element] < 2:
        if kind == "linear" and element in ("i8", "i4"):
            # Packed as codes: 1.0 and 0.62 in a text encoder; the full-size UNet takes 5218 MiB in all at 512 px.
            return 1.15 if element == "i8" else 0.7
        # Expanded, and packed besides: a Linear in fp8 8.0 in f32, 3.8 in bf16; a Conv from any codes 8.0 and 6.1.
        return place.computed + (place.computed if kind == "linear" else 4)
    return place.computed  # packed: 4.0 in f32, 2.0 in bf16


def _loading(place: Place, kind: str, element: str) -> float:
    """Bytes of anonymous memory that one weight takes at the peak of loading."""
    if place.engine == "onnx" and STORED[element] == 2 and kind != "table":  # widened, then packed
        return 8.0 if kind == "conv" else 4.8
    return _on_cpu(place, kind, element)


def _widest(model: Model, picture: Picture) -> float:
    """Numbers in one tensor of the component's widest layer."""
    if model.name.startswith("text"):
        return picture.batch * _TOKENS * float(model.config["intermediate_size"])
    channels = model.config["block_out_channels"]
    if model.name == "unet":
        return picture.batch * picture.latent * float(channels[0])
    # The decoder's last level begins with the channels of the one before.
    return picture.pixels * float(channels[min(1, len(channels) - 1)] if model.name == "vae_decoder" else channels[0])


def _attention(model: Model, picture: Picture) -> float:
    """Numbers in one matrix of token by token of all heads: those of the UNet's first attention, or of the VAE's middle."""
    if model.name.startswith("text"):
        return 0
    if model.name != "unet":
        return picture.batch * picture.latent**2
    levels = [level for level, kind in enumerate(model.config["down_block_types"]) if "CrossAttn" in kind]
    level = levels[0] if levels else len(model.config["down_block_types"]) - 1  # in the middle at least
    heads = model.config["num_attention_heads"] or model.config["attention_head_dim"]  # diffusers: its number, by mistake
    return picture.batch * (picture.latent / 4**level) ** 2 * (heads if isinstance(heads, int) else heads[level])


def _largest(model: Model) -> int:
    """Numbers in the largest weight: a 3x3 convolution of twice the channels, or the feed-forward half of a text encoder."""
    if model.name.startswith("text"):
        return int(model.config["hidden_size"] * model.config["intermediate_size"])
    channels = max(model.config["block_out_channels"])
    return int(9 * channels * channels * (2 if model.name == "unet" else 1))
