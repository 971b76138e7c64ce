"""A user's own latents and pictures take part in the measurement, and bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaefix.convert.calibration import own_inputs
from vaefix.convert.checkpoint import Checkpoint
from vaefix.convert.convert import ConvertOptions, convert
from vaefix.convert.families import Component, sdxl
from vaefix.runtime.errors import RequestError


@pytest.fixture
def components(demo_model: Path) -> dict[str, Component]:
    """The demo model's components by name."""
    return {component.name: component for component in sdxl.components(Checkpoint.open(demo_model))}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Two latents and one picture of an odd size."""
    np.save(tmp_path / "latents.npy", np.random.default_rng(0).standard_normal((2, 4, 6, 8)))
    Image.fromarray(np.full((19, 35, 3), 255, dtype=np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "latents.npy", tmp_path / "picture.png"


def test_every_component_takes_what_fits_it(components: dict[str, Component], files: tuple[Path, Path]) -> None:
    assert [feed["latent_sample"].shape for feed in own_inputs(components["vae_decoder"], files)] == [(1, 4, 6, 8)] * 2
    (picture,) = own_inputs(components["vae_encoder"], files)
    assert picture["sample"].shape == (1, 3, 16, 32)
    assert (picture["sample"] == 1).all()
    assert own_inputs(components["unet"], files) == []


def test_larger_latents_raise_the_measured_range(demo_model: Path, cache_folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.full((1, 4, 8, 8), 1e4, dtype=np.float32))

    def peak(name: str, calibration: tuple[Path, ...]) -> float:
        options = ConvertOptions(
            tmp_path / name, demo_model, components=("vae_decoder",), calibration=calibration, cache=cache_folder
        )
        plan = json.loads((convert(options).folder / "vae_decoder" / "repair.json").read_text())
        return next(op["absmax_before"] for op in plan["ops"] if op["path"] == "decoder.conv_in")

    assert peak("own", (tmp_path / "large.npy",)) > 10 * peak("seeded", ())


@pytest.mark.parametrize(
    "content", [b"", b"not an array", np.zeros((4, 8, 8)), np.full((1, 4, 8, 8), np.nan), np.zeros((0, 4, 8, 8))]
)
def test_bad_file_is_named(components: dict[str, Component], tmp_path: Path, content: bytes | np.ndarray) -> None:
    file = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    with pytest.raises(RequestError) as error:
        own_inputs(components["vae_decoder"], [file])
    assert error.value.source == str(file)


def test_pickled_array_is_refused(components: dict[str, Component], tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RequestError, match="it holds object"):
        own_inputs(components["vae_decoder"], [tmp_path / "objects.npy"])
