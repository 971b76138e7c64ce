"""An artifact as a real diffusers pipeline."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .artifact import Artifact
from .errors import ArtifactError, RequestError
from .needs import latent_size
from .session import Device, EngineOptions, Session, open_session
from .tokenizers import load_tokenizer
from .turns import Turns

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionXLPipeline

_NEEDED = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
_RECONVERT = "convert the model again with vaefix-convert"
_DEFAULTS = EngineOptions()


@dataclass(frozen=True)
class Thrift:
    """What is given up so that a pipeline needs less memory; see `EngineOptions.low_memory` for the engines.

    one_at_a_time: a component is loaded when it runs, and the others are released. Each is loaded once at the start as well;
        a negative prompt loads the text encoders again.
    tile: the VAE decodes in tiles of this side, in latent pixels; None decodes pictures whole.
    split_cfg: the UNet computes one sample at a time, the guided and the unguided prediction apart.
    """

    one_at_a_time: bool = False
    tile: int | None = None
    split_cfg: bool = False


_LAVISH = Thrift()


def load_pipeline(
    folder: str | Path,
    device: Device = "CPU",
    *,
    verify: bool = False,
    options: EngineOptions = _DEFAULTS,
    thrift: Thrift = _LAVISH,
    on_load: Callable[[str], None] | None = None,
) -> StableDiffusionXLPipeline:
    """Load an artifact as a `diffusers.StableDiffusionXLPipeline` whose modules run on `device`.

    device: for all (`"GPU"`, `"CUDA:1"`) or by component (`{"*": "GPU", "vae_decoder": "CPU"}`).
    verify: check the sha256 of every file, not only its size.
    options: cached graphs, CUDA graphs, falling back to the CPU, little memory, and the engine's own settings.
    thrift: what is given up for memory.
    on_load: called with each component's name before it is loaded.
    Everything diffusers offers works: schedulers, callbacks, `output_type="latent"`; every decode passes the guard.
    Latents, embeddings and the scheduler live where the UNet's session wants its tensors.
    Raises ArtifactError for a damaged or incomplete artifact, DeviceError for a device that cannot run it, RequestError
    for options that its engine or device does not have.
    """
    artifact = Artifact.load(folder, verify=verify)
    if missing := [name for name in _NEEDED if name not in artifact.components]:
        raise ArtifactError(
            f"drawing a picture takes {', '.join(missing)}, which it does not have",
            source=artifact.folder,
            remedy="convert the whole model (vaefix-convert without --components)",
        )
    index = _model_index(artifact)
    # Not at the top: these import torch, and importing this file must stay light.
    from diffusers import StableDiffusionXLPipeline

    from .modules import TextEncoder, UNet, Vae

    try:
        scheduler = scheduler_class(index.scheduler, source=index.path).from_pretrained(artifact.folder / "scheduler")
    except (OSError, ValueError, NotImplementedError) as error:
        raise ArtifactError(f"no scheduler ({error})", source=artifact.folder / "scheduler", remedy=_RECONVERT) from error

    def opened(name: str) -> Session:
        if on_load is not None:
            on_load(name)
        return open_session(artifact, name, device, options)

    take = Turns(opened).session if thrift.one_at_a_time else opened
    order = reversed(_NEEDED) if thrift.one_at_a_time else _NEEDED  # the last one stays open, and is the first to run
    sessions = {name: take(name) for name in order}
    home = sessions["unet"].tensor_device
    return StableDiffusionXLPipeline(
        text_encoder=TextEncoder(artifact.config("text_encoder"), sessions["text_encoder"], home),
        text_encoder_2=TextEncoder(artifact.config("text_encoder_2"), sessions["text_encoder_2"], home),
        tokenizer=load_tokenizer(artifact.folder / "tokenizer"),
        tokenizer_2=load_tokenizer(artifact.folder / "tokenizer_2"),
        unet=UNet(_with_side(artifact.config("unet")), sessions["unet"], home, split=thrift.split_cfg),
        vae=Vae(artifact.config("vae_decoder"), sessions["vae_decoder"], partial(take, "vae_encoder"), home, tile=thrift.tile),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=index.force_zeros_for_empty_prompt,
    )


def _with_side(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The config with one number for the latent's side, with which diffusers reckons; a picture that is not square has none."""
    height, width = latent_size(unet)
    return {**unet, "sample_size": height if height == width else [height, width]}


def scheduler_class(name: str, *, source: str | Path | None = None) -> type[SchedulerMixin]:
    """The scheduler of that name in `diffusers.schedulers`; `source` says who asks for it.

    Raises RequestError for anything else, so that a model cannot name code of its own.
    """
    import diffusers
    from diffusers import schedulers

    found = getattr(schedulers, name, None)
    if isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin):
        return found
    known = [known for known in dir(schedulers) if known.endswith("Scheduler")]
    close = difflib.get_close_matches(name, known) or ["EulerDiscreteScheduler"]
    raise RequestError(
        f"{name} is not a scheduler of diffusers {diffusers.__version__}",
        source=source,
        remedy=f"name one of its schedulers, such as {', '.join(close)}",
    )


@dataclass(frozen=True)
class _ModelIndex:
    path: Path
    scheduler: str
    force_zeros_for_empty_prompt: bool


def _model_index(artifact: Artifact) -> _ModelIndex:
    path = artifact.folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        pipeline, (_, scheduler) = index["_class_name"], index["scheduler"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"unreadable ({error!r})", source=path, remedy=_RECONVERT) from None
    if pipeline != "StableDiffusionXLPipeline":
        raise ArtifactError(f"a {pipeline}, not a StableDiffusionXLPipeline", source=path, remedy=_RECONVERT)
    return _ModelIndex(path, str(scheduler), bool(index.get("force_zeros_for_empty_prompt", True)))
