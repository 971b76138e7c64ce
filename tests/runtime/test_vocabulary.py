"""What a person types is understood in its usual spellings, and half of a pair is not guessed at."""

from __future__ import annotations

import pytest

from vaefix.runtime import vocabulary
from vaefix.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("unet,vae", ("unet", "vae_encoder", "vae_decoder")),
        (" UNet , VAE-decoder,", ("unet", "vae_decoder")),
        ("vae,vae_encoder", ("vae_encoder", "vae_decoder")),
        ("nothing", ("nothing",)),
        (",", ()),
    ],
)
def test_components_are_named_one_by_one_or_both_halves_of_the_vae_at_once(text: str, names: tuple[str, ...]) -> None:
    assert vocabulary.component_names(text) == names


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["gpu"], {"*": "GPU"}),
        (["CUDA:1"], {"*": "CUDA:1"}),
        (["cuda.1"], {"*": "CUDA:1"}),
        (["GPU:1", "vae=cpu"], {"*": "GPU.1", "vae": "CPU"}),
        (["vae_decoder:CPU", "unet:CUDA:1"], {"vae_decoder": "CPU", "unet": "CUDA:1"}),
        (["unet=gpu.0", "*=npu"], {"unet": "GPU.0", "*": "NPU"}),
        (["GPU", "GPU"], {"*": "GPU"}),
    ],
)
def test_a_device_is_that_of_all_or_of_one_component(values: list[str], found: dict[str, str]) -> None:
    assert vocabulary.by_component(values, "device", "--device", vocabulary.device) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["=CPU"], "'=CPU' is not"),
        (["unet="], "'unet=' is not"),
        (["unet:"], "'unet:' is not"),
        ([""], "'' is not"),
        (["unet=CPU", "UNet:GPU"], "two devices for unet"),
        (["CPU", "GPU"], "two devices for all components"),
    ],
)
def test_half_of_a_pair_and_a_contradiction_are_wrong_usage(values: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        vocabulary.by_component(values, "device", "--device", vocabulary.device)
    assert caught.value.source == "--device"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("what", "value", "example"),
    [
        ("device", "", "CPU, or unet=CPU"),
        ("device", "unet=", "CPU, or unet=CPU"),
        ("device", "=gpu", "gpu, or unet=gpu"),
        ("precision", "vae:", "fp16, or vae=fp16"),
    ],
)
def test_what_is_to_be_written_in_its_place_is_right_itself(what: str, value: str, example: str) -> None:
    with pytest.raises(UsageError) as caught:
        vocabulary.by_component([value], what, f"--{what}", str)
    assert caught.value.remedy == f"write it as in {example} for one component"


@pytest.mark.parametrize(
    ("precision", "spellings"),
    [
        ("fp32", "FP32 float32 f32 Float"),
        ("fp16", "FP16 float16 half F16"),
        ("bf16", "BF16 bfloat16"),
        ("int8", "INT8 i8"),
        ("int4", "Int4 i4"),
        ("fp8_e4m3", "fp8-e4m3 FP8_E4M3 e4m3 float8_e4m3fn"),
        ("fp8_e5m2", "fp8-e5m2 e5m2 float8_e5m2"),
        ("auto", "AUTO"),
        ("fp17", "FP17"),
    ],
)
def test_a_precision_has_many_spellings(precision: str, spellings: str) -> None:
    assert {vocabulary.precision(word) for word in spellings.split()} == {precision}


def test_a_target_is_spelt_with_a_hyphen() -> None:
    assert vocabulary.target("OpenVINO_GPU") == "openvino-gpu"


@pytest.mark.parametrize(
    ("values", "component", "value"),
    [
        ({"*": 1, "vae": 2, "vae_decoder": 3}, "vae_decoder", 3),
        ({"*": 1, "vae": 2, "vae_decoder": 3}, "vae_encoder", 2),
        ({"*": 1, "vae": 2}, "unet", 1),
        ({"vae": 2}, "unet", None),
    ],
)
def test_a_component_s_own_value_wins_over_its_group_s_and_that_over_all(
    values: dict[str, int], component: str, value: int | None
) -> None:
    assert vocabulary.of_component(values, component) == value


def test_a_group_is_known_where_one_of_its_members_is() -> None:
    assert vocabulary.unknown_components(["vae", "*", "unet", "lora"], ["vae_decoder", "unet"]) == ["lora"]
    assert vocabulary.unknown_components(["vae"], ["unet"]) == ["vae"]
