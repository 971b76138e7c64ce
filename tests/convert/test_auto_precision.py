"""`--precision auto`: the most accurate precision of each component that runs within the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vaefix.convert.choose import AUTO, ERRORS, Choice, choose, resolve
from vaefix.convert.convert import ConvertOptions
from vaefix.convert.request import Request
from vaefix.convert.targets import Job, find_target
from vaefix.runtime.errors import RequestError, ResourceError

GB = 10**9


@pytest.fixture
def options(demo_model: Path, cache_folder: Path, tmp_path: Path) -> ConvertOptions:
    return ConvertOptions(tmp_path / "output", demo_model, "openvino-gpu", {"*": AUTO}, cache=cache_folder)


def chosen(options: ConvertOptions, budget: int) -> dict[str, Choice]:
    return {choice.component: choice for choice in resolve(replace(options, budget=budget))[1]}


def at_full_size(job: Job) -> Job:
    """The demo model's component with thousands of times as many weights in each layer, so that they decide."""
    parameters = {
        value: replace(
            parameter,
            shape=tuple(size * 64 if len(parameter.shape) > 1 and i < 2 else size for i, size in enumerate(parameter.shape)),
        )
        for value, parameter in job.program.parameters.items()
    }
    return replace(job, program=replace(job.program, parameters=parameters))


@pytest.fixture
def large(options: ConvertOptions) -> list[Job]:
    return [at_full_size(job) for job in Request.of(replace(options, precision={"*": "fp16"})).jobs()]


def test_a_generous_budget_gives_every_component_its_most_accurate_precision(options: ConvertOptions) -> None:
    assert {choice.precision for choice in chosen(options, 100 * GB).values()} == {"fp16"}


def test_a_smaller_budget_never_gives_more_accuracy(large: list[Job]) -> None:
    target, asked = find_target("openvino-gpu"), {job.component.name: AUTO for job in large}
    needs = {size for choice in choose(large, asked, target, 1000 * GB) for size in choice.considered.values()}
    before: dict[str, float] = {}
    met = set()
    for budget in sorted(needs, reverse=True):
        try:
            choices = choose(large, asked, target, budget)
        except ResourceError:
            break
        for choice in choices:
            if choice.component != "vae_encoder":
                assert choice.needed_bytes <= budget
            assert choice.error >= before.get(choice.component, 0)
            better = [p for p, size in choice.considered.items() if size <= budget]
            assert all(ERRORS[choice.component][p] >= choice.error for p in better)
            before[choice.component] = choice.error
            met.add(choice.precision)
    assert {"fp16", "int8"} <= met


def test_the_budget_that_a_refusal_names_is_kept_and_a_smaller_one_is_not(large: list[Job]) -> None:
    target, asked = find_target("openvino-gpu"), {job.component.name: AUTO for job in large}
    with pytest.raises(ResourceError, match="in the precision that takes least") as error:
        choose(large, asked, target, GB // 10)
    named = round(float(str(error.value.remedy).split()[-1].removesuffix("GB")) * GB)
    assert choose(large, asked, target, named)
    with pytest.raises(ResourceError):
        choose(large, asked, target, named - 2 * 10**7)


def test_a_precision_that_was_named_is_kept(options: ConvertOptions) -> None:
    mixed = replace(options, precision={"*": AUTO, "vae_decoder": "fp32", "unet": "int4"})
    found = chosen(mixed, 100 * GB)
    assert found["vae_decoder"].precision == "fp32"
    assert found["unet"].precision == "int4"
    assert found["text_encoder"].precision == "fp16"
    assert found["vae_decoder"].considered.keys() == {"fp32"}


def test_one_component_alone_may_be_auto(options: ConvertOptions) -> None:
    found = chosen(replace(options, precision={"*": "fp32", "unet": AUTO}), 100 * GB)
    assert {name: choice.precision for name, choice in found.items()} == {
        **dict.fromkeys(("text_encoder", "text_encoder_2", "vae_encoder", "vae_decoder"), "fp32"),
        "unet": "fp16",
    }


def test_a_vae_encoder_follows_its_decoder(options: ConvertOptions) -> None:
    found = chosen(replace(options, precision={"*": AUTO, "vae_decoder": "int8"}), 100 * GB)
    assert found["vae_encoder"].precision == "int8"
    alone = replace(options, components=("vae_encoder",))
    assert chosen(alone, 100 * GB)["vae_encoder"].precision == "fp16"


@pytest.mark.parametrize("target", ["openvino-gpu", "openvino-cpu", "onnx-cuda", "onnx-cpu"])
def test_only_precisions_of_the_target_are_considered(options: ConvertOptions, target: str) -> None:
    resolved, choices = resolve(replace(options, target=target, budget=100 * GB))
    assert dict(resolved.precision) == {choice.component: choice.precision for choice in choices}
    known = set(find_target(target).execution) - {"fp32"}
    assert set(choices[0].considered) == known


def test_nothing_changes_where_nothing_is_auto(options: ConvertOptions) -> None:
    fixed = replace(options, precision={"*": "int8"})
    assert resolve(fixed) == (fixed, ())


def test_auto_without_a_budget_and_a_budget_without_auto_are_refused(options: ConvertOptions) -> None:
    with pytest.raises(RequestError, match="within a budget"):
        resolve(options)
    with pytest.raises(RequestError, match="nothing to choose"):
        resolve(replace(options, precision={"*": "int8"}, budget=GB))


def test_every_component_has_an_error_in_every_precision() -> None:
    assert len({frozenset(errors) for errors in ERRORS.values()}) == 1
    for errors in ERRORS.values():
        assert 0 == errors["fp16"] < errors["int8"] < errors["fp8_e4m3"] < errors["fp8_e5m2"] < 1
