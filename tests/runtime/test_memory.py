"""Planning memory: what fits is planned, what cannot fit is refused with the smallest limit that can be kept."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaefix.runtime.artifact import Artifact, ComponentEntry
from vaefix.runtime.errors import ArtifactError, RequestError, ResourceError
from vaefix.runtime.memory import Plan, first_within, gigabytes, ladder, plan
from vaefix.runtime.needs import STORED, Model, Picture, Place, needs_of

GB = 10**9
COUNTS = {
    "text_encoder": {"linear": 84_934_656, "table": 38_004_480, "other": 121_344},
    "text_encoder_2": {"linear": 630_784_000, "table": 63_340_800, "other": 535_040},
    "unet": {"linear": 2_232_647_680, "conv": 333_232_640, "other": 1_583_364},
    "vae_decoder": {"linear": 1_050_624, "conv": 48_390_000, "other": 40_000},
}
"""Of SDXL base, by kind."""
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "text_encoder_2": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32},
    "unet": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "num_attention_heads": None,
        "attention_head_dim": [5, 10, 20],
    },
    "vae_decoder": {"block_out_channels": [128, 256, 512, 512]},
}
PLACES = [
    Place(engine, device, execution, low_memory)
    for engine, device, execution in (
        ("openvino", "CPU", "f32"),
        ("openvino", "CPU", "bf16"),
        ("openvino", "GPU", "f16"),
        ("onnx", "CPU", "f32"),
        ("onnx", "CUDA", "f16"),
        ("onnx", "CUDA:1", "bf16"),
    )
    for low_memory in (False, True)
]


def sdxl(name: str, element: str = "f16") -> Model:
    """A component of SDXL base, Linear and Conv in that element type and the rest in 16 bits or more."""
    rest = element if element in ("f32", "bf16") else "f16"
    stored = {kind: {element if kind in ("linear", "conv") else rest: count} for kind, count in COUNTS[name].items()}
    return Model(name, CONFIGS[name], stored)


def rungs(place: Place, element: str = "f16", height: int = 1024, width: int = 1024, images: int = 1) -> list[Plan]:
    return ladder([(sdxl(name, element), place) for name in COUNTS], height, width, images)


def test_each_rung_of_the_ladder_gives_up_one_thing_more() -> None:
    ways = [(rung.tile, rung.one_at_a_time, rung.low_memory, rung.split_cfg) for rung in rungs(PLACES[0])]
    assert ways == [(None, False, False, False), (64, False, False, False), (64, True, True, False), (64, True, True, True)]


def test_a_picture_of_one_tile_is_not_cut() -> None:
    assert {rung.tile for rung in rungs(PLACES[0], height=512, width=512)} == {None}
    assert {rung.tile for rung in rungs(PLACES[0], height=512, width=520)} == {None, 64}


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_rung_needs_less_than_the_one_before(place: Place) -> None:
    needed = [rung.needed_bytes for rung in rungs(place)]
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) > 2


@settings(max_examples=50, deadline=None)
@given(place=st.sampled_from(PLACES), limits=st.tuples(st.integers(0, 40 * GB), st.integers(0, 40 * GB)))
def test_a_larger_limit_never_gives_up_more(place: Place, limits: tuple[int, int]) -> None:
    ways = rungs(place)
    small, large = (next((i for i, way in enumerate(ways) if way.needed_bytes <= limit), 9) for limit in sorted(limits))
    assert large <= small
    if small < 9:
        assert first_within(ways, max(limits), "--memory") == ways[large]


@settings(max_examples=50, deadline=None)
@given(
    place=st.sampled_from(PLACES),
    sides=st.tuples(st.integers(8, 2048), st.integers(8, 2048)),
    more=st.tuples(st.integers(0, 1024), st.integers(0, 1024)),
    images=st.integers(1, 3),
)
def test_a_larger_picture_never_needs_less(place: Place, sides: tuple[int, int], more: tuple[int, int], images: int) -> None:
    height, width = sides
    small = rungs(place, height=height, width=width, images=images)
    large = rungs(place, height=height + more[0], width=width + more[1], images=images)
    by_way = {(rung.one_at_a_time, rung.split_cfg, rung.tile): rung.needed_bytes for rung in large}
    for rung in small:
        same = [needed for (one, split, _), needed in by_way.items() if (one, split) == (rung.one_at_a_time, rung.split_cfg)]
        assert rung.needed_bytes <= max(same)
    more_images = rungs(place, height=height, width=width, images=images + 1)
    for one, two in zip(small, more_images, strict=True):
        # A card holds no pictures, and a UNet that takes one sample at a time does not see how many there are.
        same = one.split_cfg and place.device != "CPU"
        assert one.needed_bytes < two.needed_bytes or (same and one.needed_bytes == two.needed_bytes)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("name", COUNTS)
def test_more_bits_never_need_less(place: Place, name: str) -> None:
    """But for codes that OpenVINO expands on a CPU."""
    needs = {element: needs_of(sdxl(name, element), place, Picture(1024, 1024)) for element in STORED}
    for one, other in itertools.combinations(sorted(STORED, key=STORED.__getitem__), 2):
        if STORED[one] < STORED[other] and (place.engine, place.device) != ("openvino", "CPU"):
            assert needs[one].held + needs[one].mapped <= needs[other].held + needs[other].mapped


def test_weights_that_stay_in_the_file_are_not_held_and_are_read_there() -> None:
    for place in (Place("onnx", "CPU", "f32", low_memory=True), Place("onnx", "CPU", "f16")):
        coded = needs_of(sdxl("unet", "i8"), place, Picture(512, 512))
        assert coded.mapped > 2.5 * GB
        assert coded.peak < GB
    whole = needs_of(sdxl("unet", "f16"), Place("onnx", "CPU", "f32"), Picture(512, 512))
    assert whole.mapped == 0
    assert whole.loading > whole.held > 10 * GB


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_on_a_cpu_keeps_only_integers_of_a_linear_small(precision: str) -> None:
    def held(kind: str, element: str) -> int:
        model = Model("unet", CONFIGS["unet"], {kind: {element: GB}})
        return needs_of(model, Place("openvino", "CPU", precision), Picture(512, 512)).held

    for element in ("f8e4m3", "f8e5m2"):
        assert held("linear", element) > held("linear", "f16")
    assert held("linear", "i4") < held("linear", "i8") < held("linear", "f16")
    assert all(held("conv", element) > held("conv", "f16") for element in ("i8", "i4", "f8e4m3"))


def test_what_is_needed_exactly_is_enough_and_a_byte_less_is_not() -> None:
    ways = rungs(PLACES[0])
    for number, way in enumerate(ways):
        assert first_within(ways, way.needed_bytes, "--memory") == way
        if number + 1 < len(ways):
            assert first_within(ways, way.needed_bytes - 1, "--memory") == ways[number + 1]
    with pytest.raises(ResourceError, match="is too little") as error:
        first_within(ways, ways[-1].needed_bytes - 1, "--memory")
    assert error.value.source == "--memory"


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_limit_that_a_refusal_names_is_kept(place: Place) -> None:
    ways = rungs(place)
    with pytest.raises(ResourceError) as error:
        first_within(ways, GB // 2, "--memory")
    named = round(float(str(error.value.remedy).split()[1]) * GB)
    assert first_within(ways, named, "--memory") in ways
    assert min(way.needed_bytes for way in ways) <= named <= min(way.needed_bytes for way in ways) + 10**7
    assert ways[-1].asks in COUNTS


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(RequestError, match="0x512"):
        ladder([], 512, 0)


def test_devices_are_limited_each_for_itself() -> None:
    unet, decoder = sdxl("unet"), sdxl("vae_decoder")
    cuda, cpu = Place("onnx", "CUDA", "f16"), Place("onnx", "CPU", "f32")
    apart = ladder([(unet, cuda), (decoder, cpu)], 512, 512)[0]
    together = ladder([(unet, cuda), (decoder, cuda)], 512, 512)[0]
    assert apart.asks == "unet"
    assert apart.needed_bytes < together.needed_bytes
    same = ladder([(unet, cuda), (decoder, replace(cuda, device="CUDA:0"))], 512, 512)[0]
    assert same == together


def test_the_sentence_says_what_is_given_up() -> None:
    first, *_, last = rungs(PLACES[0])
    assert first.sentence.endswith("everything is loaded at once")
    for words in ("one component is loaded at a time", "tiles", "one sample at a time", " GB"):
        assert words in last.sentence


def test_the_demo_artifact_is_planned_from_its_manifest(demo_artifact_fp32: Artifact) -> None:
    found = plan(demo_artifact_fp32, "CPU", 128, 128, 4 * GB)
    assert found.sentence.endswith("everything is loaded at once")
    assert found.needed_bytes < 2 * GB
    assert plan(demo_artifact_fp32, {"*": "GPU", "vae_decoder": "CPU"}, 128, 128, 4 * GB).needed_bytes < 2 * GB


def test_an_artifact_that_does_not_say_what_it_stores_is_refused() -> None:
    entries = {name: ComponentEntry(f"{name}/openvino_model.xml", "fp16", "f32") for name in COUNTS}
    with pytest.raises(ArtifactError, match="no memory can be planned"):
        plan(Artifact(Path("old"), "openvino-cpu", "sdxl", entries, {}), "CPU", 512, 512, 4 * GB)


@given(count=st.integers(1, 100 * GB))
def test_an_amount_that_is_said_is_never_less_than_meant(count: int) -> None:
    assert count <= round(float(gigabytes(count).removesuffix(" GB")) * GB) < count + 10**7 + 1


def draw_within(artifact: Artifact, limit: int, picture: Path, planned: int | None = None) -> subprocess.CompletedProcess[str]:
    """Draw by `vaefix-run --memory` in a process to which the kernel gives no more private memory than `limit` bytes."""
    enforced = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2); del sys.argv[1]"
    run = f"{enforced}; runpy.run_module('vaefix.runtime.cli', run_name='__main__')"
    memory = gigabytes(planned or limit).replace(" ", "")
    words = [str(artifact.folder), "--prompt", "a", "--steps", "1", "--memory", memory, "-o", str(picture)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # each thread's stack counts
    command = [sys.executable, "-c", run, str(limit), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["demo_artifact_fp32", "demo_artifact_onnx_cpu"])
def test_a_drawing_keeps_its_plan_as_the_kernel_enforces_it(
    target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    artifact = request.getfixturevalue(target)
    whole = plan(artifact, "CPU", 128, 128, 4 * GB).needed_bytes
    frugal = plan(artifact, "CPU", 128, 128, whole - 1).needed_bytes
    for needed in (whole, frugal):
        done = draw_within(artifact, needed, tmp_path / f"{needed}.png")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{needed}.png").exists()
    refused = draw_within(artifact, frugal // 2, tmp_path / "none.png", planned=frugal)
    assert refused.returncode != 0, "the kernel enforced nothing"


def test_the_same_latents_cost_the_unet_the_same_whatever_the_vae_makes_of_them() -> None:
    place, unet = Place("onnx", "CPU", "f32"), sdxl("unet")
    ours, larger = (needs_of(unet, place, Picture(factor * 64, factor * 64, factor=factor)) for factor in (8, 16))
    assert ours == larger
    assert ladder([(unet, place)], 1024, 1024, factor=16)[0].tile is None
    assert ladder([(unet, place)], 1024, 1024, factor=8)[1].tile == 64


@pytest.mark.parametrize(
    ("heads", "dims", "expected"), [(None, 10, 10), (None, [5, 10, 20], 10), (10, 8, 10), ([5, 10, 20], 8, 10)]
)
def test_number_of_heads_is_where_diffusers_finds_it(heads: object, dims: object, expected: int) -> None:
    config = {**CONFIGS["unet"], "num_attention_heads": heads, "attention_head_dim": dims}
    asked = Model("unet", config, sdxl("unet").weights)
    plain = Model("unet", {**CONFIGS["unet"], "attention_head_dim": expected}, asked.weights)
    place = Place("onnx", "CPU", "f32")
    assert needs_of(asked, place, Picture(512, 512)) == needs_of(plain, place, Picture(512, 512))
