"""What the configs of an SDXL must say for pictures to be drawn with it. What makes a network is left to the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeGuard

from .artifact import Artifact
from .errors import ArtifactError

_MOST = 100_000  # channels or layers
_LARGEST = 1e30  # of a factor or a mean
_TIME_IDS = 6
_CHANNELS = {8: "a UNet that edits pictures", 9: "a UNet for inpainting"}
Config = Mapping[str, Any]


def fault_of(configs: Mapping[str, Config]) -> tuple[str, str] | None:
    """Component and reason, for an entry that is of a wrong type or contradicts another component's; None where all is well.

    configs: `config.json` of `text_encoder`, `text_encoder_2`, `unet` and `vae`, or of some of them.
    """
    checks: dict[str, list[Callable[[Config], str | None]]] = {
        "text_encoder": [_text_encoder],
        "text_encoder_2": [_text_encoder],
        "vae": [_levels, _size, _vae],
        "unet": [_levels, _size],
    }
    if configs.keys() == checks.keys():
        checks["unet"].append(partial(_fits, configs))  # last: it relies on the others' types
    faults = ((name, check(configs[name])) for name, own in checks.items() if name in configs for check in own)
    return next(((name, reason) for name, reason in faults if reason is not None), None)


def require_configs(artifact: Artifact) -> None:
    """Raise ArtifactError for an artifact whose configs have a fault."""
    folders = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2", "unet": "unet", "vae": "vae_decoder"}
    there = {part: folder for part, folder in folders.items() if folder in artifact.components}
    fault = fault_of({part: artifact.config(folder) for part, folder in there.items()})
    if fault is not None:
        source = artifact.folder / folders[fault[0]] / "config.json"
        raise ArtifactError(fault[1], source=source, remedy="convert the model again with vaefix-convert")


def is_count(value: Any) -> TypeGuard[int]:
    """Whether a value can be a number of channels or layers."""
    return type(value) is int and 0 < value <= _MOST


def _wrong(config: Config, key: str, expected: str) -> str:
    return f"{key} is {str(config[key])[:80]!r}, expected {expected}"


def _counts(config: Config, *keys: str) -> str | None:
    """What the library would take a default for may be absent."""
    wrong = [key for key in keys if key in config and not is_count(config[key])]
    return _wrong(config, wrong[0], f"a whole number from 1 to {_MOST}") if wrong else None


def _levels(config: Config) -> str | None:
    levels = config.get("block_out_channels", [1])
    if isinstance(levels, list) and levels and all(map(is_count, levels)):
        return _counts(config, "in_channels", "out_channels", "latent_channels")
    return _wrong(config, "block_out_channels", "a list of whole numbers, one for each level")


def _text_encoder(config: Config) -> str | None:
    if type(end := config.get("eos_token_id")) is int and end < 0:
        return _wrong(config, "eos_token_id", "a whole number from 0")
    return _counts(config, "hidden_size", "projection_dim", "vocab_size", "max_position_embeddings", "num_hidden_layers")


def _vae(config: Config) -> str | None:
    if "scaling_factor" in config and not (_is_finite(config["scaling_factor"]) and config["scaling_factor"] > 0):
        return _wrong(config, "scaling_factor", "a number above 0")
    channels = config.get("latent_channels", 4)
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        if values is None:
            continue
        if not (isinstance(values, list) and len(values) == channels and all(map(_is_finite, values))):
            return _wrong(config, key, f"{channels} numbers, or none")
    return None


def _size(config: Config) -> str | None:
    size = config.get("sample_size")
    pair = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if size is not None and not all(map(is_count, pair)):
        return _wrong(config, "sample_size", "a whole number, or height and width")
    return None


def _fits(parts: Mapping[str, Config], unet: Config) -> str | None:
    """The UNet's inputs are what the text encoders and the VAE give."""
    latent = parts["vae"].get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        if (found := unet.get(key, 4)) != latent:
            what = _CHANNELS.get(found, "another kind of UNet") if key == "in_channels" else "another kind of UNet"
            return f"{key} is {found}, where the VAE has {latent} latent channels: {what}, not one that draws from text"
    widths = [parts[name].get("hidden_size", 512) for name in ("text_encoder", "text_encoder_2")]
    pooled = parts["text_encoder_2"].get("projection_dim", 512)
    time = unet.get("addition_time_embed_dim")
    wanted = {"cross_attention_dim": sum(widths)}
    if is_count(time):
        wanted["projection_class_embeddings_input_dim"] = pooled + _TIME_IDS * time
    for key, expected in wanted.items():
        if (given := unet.get(key)) != expected:
            return f"{key} is {str(given)[:80]!r}, but the text encoders give {expected}: they are of another model"
    return None


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _LARGEST  # which NaN is not
