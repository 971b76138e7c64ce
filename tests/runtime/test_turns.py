"""One component in memory at a time: the same pictures, and never two sessions."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from vaefix.runtime import pipeline as module
from vaefix.runtime.artifact import Artifact
from vaefix.runtime.pipeline import Thrift, load_pipeline
from vaefix.runtime.session import EngineOptions, open_session
from vaefix.runtime.turns import Turns

Pipeline = diffusers.StableDiffusionXLPipeline
THRIFTY = Thrift(one_at_a_time=True, tile=64, split_cfg=True)


class _Real:
    """An engine's session."""

    inputs, outputs, device, precision, tensor_device = ("x",), ("y",), "CPU", "f32", "cpu"

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, feeds: dict[str, str]) -> dict[str, str]:
        return {"y": self.name + feeds["x"]}

    run_tensors = run


@pytest.fixture
def alive() -> Iterator[weakref.WeakSet]:
    """The sessions of an engine that are in memory."""
    return weakref.WeakSet()


@pytest.fixture
def turns(alive: weakref.WeakSet) -> Turns:
    def opened(name: str) -> _Real:
        assert not alive, "the one before is closed first"
        session = _Real(name)
        alive.add(session)
        return session

    return Turns(opened)


def test_a_session_is_opened_for_its_run_and_the_one_before_is_released(turns: Turns, alive: weakref.WeakSet) -> None:
    first, second = turns.session("first"), turns.session("second")
    assert [session.name for session in alive] == ["second"]
    for session, name in ((first, "first"), (first, "first"), (second, "second"), (first, "first")):
        assert session.run({"x": "!"}) == session.run_tensors({"x": "!"}) == {"y": f"{name}!"}
        assert [session.name for session in alive] == [name]


def test_a_session_that_is_closed_still_says_what_it_is(turns: Turns) -> None:
    first = turns.session("first")
    turns.session("second")
    assert (first.inputs, first.outputs, first.device) == (("x",), ("y",), "CPU")
    assert (first.precision, first.tensor_device) == ("f32", "cpu")


def test_runs_of_one_component_open_it_once(alive: weakref.WeakSet) -> None:
    opened: list[str] = []
    turns = Turns(lambda name: opened.append(name) or _Real(name))
    unet, vae = turns.session("unet"), turns.session("vae")
    for session in (unet, unet, unet, vae):
        session.run({"x": ""})
    assert opened == ["unet", "vae", "unet", "vae"]


def test_a_component_that_cannot_be_opened_leaves_none_open_and_can_be_tried_again(alive: weakref.WeakSet) -> None:
    fails = [False]

    def opened(name: str) -> _Real:
        if fails[0]:
            raise MemoryError(name)
        session = _Real(name)
        alive.add(session)
        return session

    turns = Turns(opened)
    unet = turns.session("unet")
    turns.session("vae")
    fails[0] = True
    with pytest.raises(MemoryError, match="unet"):
        unet.run({"x": ""})
    assert not alive
    fails[0] = False
    assert unet.run({"x": "?"}) == {"y": "unet?"}


@pytest.fixture(scope="module")
def log() -> list[str]:
    """What the pipeline below opens."""
    return []


@pytest.fixture(scope="module")
def thrifty(demo_artifact_onnx_cpu: Artifact, log: list[str]) -> Pipeline:
    """The demo model with everything given up for memory."""
    options = EngineOptions(low_memory=True)
    pipeline = load_pipeline(demo_artifact_onnx_cpu.folder, options=options, thrift=THRIFTY, on_load=log.append)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _draw(pipeline: Pipeline, **arguments: Any) -> Any:
    arguments = {"num_inference_steps": 3, "height": 64, "width": 96, "guidance_scale": 7.5, "output_type": "np", **arguments}
    return pipeline("a red cat", generator=torch.Generator().manual_seed(0), **arguments).images


def test_pictures_are_the_same(
    thrifty: Pipeline, onnx_pipeline: Pipeline, model_scheduler: dict[str, Any], assert_within: Callable[..., None]
) -> None:
    for pipeline in (thrifty, onnx_pipeline):
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(model_scheduler)
    for arguments in ({}, {"num_images_per_prompt": 2}, {"guidance_scale": 1.0}):
        assert_within(_draw(thrifty, **arguments), _draw(onnx_pipeline, **arguments), 1e-4)


def test_components_are_opened_in_the_order_of_their_use(thrifty: Pipeline, log: list[str]) -> None:
    _draw(thrifty)
    log.clear()
    _draw(thrifty)
    assert log == ["text_encoder", "text_encoder_2", "unet", "vae_decoder"]


def test_all_are_tried_before_drawing_and_the_first_to_run_is_kept(demo_artifact_onnx_cpu: Artifact) -> None:
    loaded: list[str] = []
    pipeline = load_pipeline(demo_artifact_onnx_cpu.folder, thrift=THRIFTY, on_load=loaded.append)
    assert loaded == ["vae_decoder", "unet", "text_encoder_2", "text_encoder"]
    modules = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet, pipeline.vae)
    assert {(module.session.device, module.session.precision) for module in modules} == {("CPU", "f32")}
    assert len(loaded) == 4, "asking opens nothing"


@pytest.mark.slow
def test_there_are_never_two_sessions(demo_artifact_onnx_cpu: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: weakref.WeakSet = weakref.WeakSet()
    most = [0]

    def opened(*arguments: Any) -> Any:
        assert not engines
        session = open_session(*arguments)
        engines.add(session._engine)
        most[0] += 1
        return session

    monkeypatch.setattr(module, "open_session", opened)
    pipeline = load_pipeline(demo_artifact_onnx_cpu.folder, thrift=THRIFTY)
    pipeline.set_progress_bar_config(disable=True)
    _draw(pipeline)
    assert most[0] == 4 + 3
    with pytest.raises(AssertionError):
        load_pipeline(demo_artifact_onnx_cpu.folder)


def test_callbacks_and_pictures_from_a_picture_go_on_working(thrifty: Pipeline, log: list[str]) -> None:
    steps: list[int] = []
    watch = {"callback_on_step_end": lambda pipeline, step, *_: steps.append(step) or {}}
    _draw(thrifty, **watch)
    assert steps == [0, 1, 2]
    painter = diffusers.StableDiffusionXLImg2ImgPipeline(**thrifty.components)
    painter.set_progress_bar_config(disable=True)
    log.clear()
    image = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(0)
    drawn = painter("a red cat", image=image, strength=0.8, num_inference_steps=5, generator=generator, output_type="np").images
    assert drawn.std() > 0.01
    assert log == ["text_encoder", "text_encoder_2", "vae_encoder", "unet", "vae_decoder"]


def test_a_session_of_a_card_keeps_the_pipeline_there(
    demo_artifact_onnx_cpu: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`meta` stands for a card."""

    def opened(artifact: Artifact, name: str, *arguments: Any) -> Any:
        session = open_session(artifact, name, *arguments)
        kinds = {key: getattr(session, key) for key in ("inputs", "outputs", "device", "precision")}
        return SimpleNamespace(**kinds, tensor_device="meta") if name == "unet" else session

    monkeypatch.setattr(module, "open_session", opened)
    assert load_pipeline(demo_artifact_onnx_cpu.folder, thrift=THRIFTY).device == torch.device("meta")
