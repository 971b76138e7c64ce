"""How to draw a picture within a memory limit: planned from the artifact, before anything is loaded.

What costs memory is given up in a fixed order, the rungs of a ladder. None of them changes the picture by more than rounding,
except that tiles of the VAE do not see beyond their edges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from .artifact import Artifact
from .errors import ArtifactError, ResourceError, UsageError
from .needs import MIB, Model, Needs, Picture, Place, needs_of, vae_factor
from .session import Device

TILE = 64
"""Side of the VAE's tiles, in latent pixels."""
DRAWING = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
"""The components that drawing from text takes."""
_PROCESS = {"openvino": 900 * MIB, "onnx": 720 * MIB}
"""Python, torch, diffusers and the engine, as private memory: with the demo model loaded 792 and 589 MiB, and in ONNX Runtime
761 after the full-size UNet has run and is released."""
_CARD = 512 * MIB
"""What the engine itself takes of a card; not measured."""
_PICTURE = 36
"""Bytes of a picture's pixel beside the components: three colours in f32, three times over."""


@dataclass(frozen=True)
class Plan:
    """How to draw, and what that needs.

    low_memory: sessions that prefer little memory to speed.  one_at_a_time: only one component is loaded at any time.
    tile: side of the VAE's tiles in latent pixels, None for the whole picture.
    split_cfg: the UNet computes one sample at a time, the guided and the unguided prediction apart.
    needed_bytes: of the device that needs most.  asks: the component that makes it so.
    """

    low_memory: bool
    one_at_a_time: bool
    tile: int | None
    split_cfg: bool
    needed_bytes: int
    asks: str

    @property
    def sentence(self) -> str:
        """What the user is told."""
        how = [
            "one component is loaded at a time" if self.one_at_a_time else "everything is loaded at once",
            *(["the VAE decodes in tiles"] if self.tile else []),
            *(["the UNet takes one sample at a time"] if self.split_cfg else []),
        ]
        return f"planned for {gigabytes(self.needed_bytes)}: {', '.join(how)}"


def plan(artifact: Artifact, device: Device, height: int, width: int, limit_bytes: int, images: int = 1) -> Plan:
    """The first rung of the ladder that keeps within `limit_bytes` on every device.

    height, width: of the pictures, in pixels.  images: drawn at once.
    On a CPU the limit holds for what the kernel counts as the process's own data; pages of mapped files are not in it.
    Raises ResourceError naming the smallest limit that can be kept and the component that asks for it, ArtifactError for an
    artifact whose manifest does not say what its weights are, or that cannot draw, RequestError for the device AUTO.
    """
    components = []
    for name in DRAWING:
        entry = artifact.component(name)
        if not entry.weights:
            reason = f"the manifest does not say how the weights of {name} are stored, so no memory can be planned"
            raise ArtifactError(reason, source=artifact.folder, remedy="convert the model again with vaefix-convert")
        where = device if isinstance(device, str) else device.get(name, device.get("*", "CPU"))
        if where.upper() == "AUTO":
            reason = f"the engine chooses where {name} runs, so its memory cannot be planned"
            raise UsageError(reason, source="--memory", remedy="name the device: GPU or CPU")
        place = Place(artifact.target.partition("-")[0], where.upper(), entry.execution)
        components.append((Model(name, artifact.config(name), entry.weights), place))
    factor = vae_factor(artifact.config("vae_decoder"))
    return first_within(ladder(components, height, width, images, factor), limit_bytes, source="--memory")


def first_within(rungs: Sequence[Plan], limit_bytes: int, source: str) -> Plan:
    """The first that fits. Raises ResourceError naming the smallest limit that can be kept."""
    for rung in rungs:
        if rung.needed_bytes <= limit_bytes:
            return rung
    least = min(rungs, key=lambda rung: rung.needed_bytes)
    raise ResourceError(
        f"{gigabytes(limit_bytes)} is too little: {least.asks} asks for {gigabytes(least.needed_bytes)} at least",
        source=source,
        remedy=f"allow {gigabytes(least.needed_bytes)}, draw a smaller picture, or convert {least.asks} to fewer bits",
    )


def ladder(components: Sequence[tuple[Model, Place]], height: int, width: int, images: int = 1, factor: int = 8) -> list[Plan]:
    """Every way to draw, from the fastest to the one that gives up most. factor: the VAE's.

    Raises UsageError for a picture without pixels.
    """
    if min(height, width, images) < 1:
        raise UsageError(f"{images} pictures of {width}x{height} pixels", remedy="ask for at least one pixel")
    tile = TILE if max(height, width) > factor * TILE else None
    rungs = [Plan(False, False, None, False, 0, "")]
    if tile is not None:
        rungs.append(replace(rungs[-1], tile=tile))
    rungs.append(replace(rungs[-1], low_memory=True, one_at_a_time=True))
    rungs.append(replace(rungs[-1], split_cfg=True))
    return [_priced(rung, components, Picture(height, width, images, factor)) for rung in rungs]


def gigabytes(count: int) -> str:
    """`3.21 GB`, rounded up, so that a limit of as much is kept."""
    return f"{math.ceil(count / 1e7) / 100:.2f} GB"


def _priced(rung: Plan, components: Iterable[tuple[Model, Place]], picture: Picture) -> Plan:
    """The rung with what its neediest device needs."""
    needs: dict[str, dict[str, Needs]] = {}
    engine = {}
    for model, place in components:
        device = re.sub(r"[.:]0$", "", place.device)  # GPU.0 is GPU
        engine[device] = place.engine
        part = _part(model, picture, rung)
        needs.setdefault(device, {})[model.name] = needs_of(model, replace(place, low_memory=rung.low_memory), part)
    totals = {}
    for device, by_name in needs.items():
        own = _PROCESS[engine[device]] + _PICTURE * picture.pixels if device == "CPU" else _CARD
        asks = max(by_name, key=lambda name: by_name[name].peak)
        totals[own + (by_name[asks].peak if rung.one_at_a_time else _together(by_name.values()))] = asks
    needed = max(totals)
    return replace(rung, needed_bytes=needed, asks=totals[needed])


def _together(needs: Collection[Needs]) -> int:
    """Of all that is loaded: while the last one is loaded, or once all have run, as engines keep what a run took."""
    held = sum(need.held for need in needs)
    loading = max(need.loading - need.held for need in needs)
    return held + max(loading, sum(need.run for need in needs))


def _part(model: Model, picture: Picture, rung: Plan) -> Picture:
    """What of the pictures a component sees at once."""
    if model.name == "unet":
        return replace(picture, batch=1 if rung.split_cfg else 2 * picture.batch)
    if rung.tile is None or model.name != "vae_decoder":
        return picture
    side = picture.factor * rung.tile
    return replace(picture, height=min(picture.height, side), width=min(picture.width, side))
