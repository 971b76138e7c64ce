"""Faults in what surrounds the graphs: configs, the scheduler, tokenizers, the index."""

from __future__ import annotations

import json
import shutil
from typing import Any

from ..stored import reseal
from .fault import GENERATION, ONNX, OPENVINO, Fault, Patient, Plant

_SCHEDULER = "scheduler/scheduler_config.json"


def _json(file: str, **changes: Any) -> Plant:
    """Other or new entries in a JSON file."""

    def plant(patient: Patient) -> None:
        path = patient.artifact.folder / file
        content = json.loads(path.read_text(encoding="utf-8"))
        assert any(content.get(key) != value for key, value in changes.items()), "nothing was changed"
        path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
        reseal(patient.artifact)

    return plant


def _scheduler(name: str, first: str, base: str = ONNX, **changes: Any) -> Fault:
    """first: the output of a generation that fails first."""
    return Fault(name, base, GENERATION, _json(_SCHEDULER, **changes), f"parity {first}")


def _another_scheduler(kind: str) -> Plant:
    def plant(patient: Patient) -> None:
        _json("model_index.json", scheduler=["diffusers", kind])(patient)
        _json(_SCHEDULER, _class_name=kind)(patient)

    return plant


def _exchanged_tokenizers(*names: str) -> Plant:
    def plant(patient: Patient) -> None:
        for name in names:
            one, other = (patient.artifact.folder / folder / name for folder in ("tokenizer", "tokenizer_2"))
            first, second = one.read_bytes(), other.read_bytes()
            assert first != second, "nothing was changed"
            one.write_bytes(second)
            other.write_bytes(first)
        reseal(patient.artifact)

    return plant


def _another_pad_token(patient: Patient) -> None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        _json(f"tokenizer_2/{file}", pad_token="<|endoftext|>")(patient)


def _tokenizer_of_the_other(patient: Patient) -> None:
    """It pads with another token."""
    for name in ("openvino_tokenizer.xml", "openvino_tokenizer.bin"):
        shutil.copy(patient.artifact.folder / "tokenizer" / name, patient.artifact.folder / "tokenizer_2" / name)
    reseal(patient.artifact)


def _without_merges(patient: Patient) -> None:
    """Words fall apart into letters."""
    path = patient.artifact.folder / "tokenizer" / "merges.txt"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:10]), encoding="utf-8")
    reseal(patient.artifact)


def _two_words_exchanged(patient: Patient) -> None:
    """Of those that every prompt has: the letter a, and the mark at its beginning."""
    path = patient.artifact.folder / "tokenizer_2" / "vocab.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    words["a</w>"], words["<|startoftext|>"] = words["<|startoftext|>"], words["a</w>"]
    path.write_text(json.dumps(words), encoding="utf-8")
    reseal(patient.artifact)


FILE_FAULTS = (
    Fault(
        "scaling_factor of SD 1.5",
        OPENVINO,
        "vae_decoder",
        _json("vae_decoder/config.json", scaling_factor=0.18215),
        "config config.json",
        drawn="picture",
    ),
    Fault(
        "scaling_factor of SD 1.5",
        ONNX,
        "vae_encoder",
        _json("vae_encoder/config.json", scaling_factor=0.18215),
        "config config.json",
    ),
    _scheduler("betas that end elsewhere", "trajectory", beta_end=0.013),
    _scheduler("betas on a straight line", "trajectory", beta_schedule="linear"),
    _scheduler("v-prediction for epsilon", "trajectory", prediction_type="v_prediction"),
    _scheduler("timesteps spaced from the end", "timestep", timestep_spacing="trailing"),
    _scheduler("timesteps off by one", "timestep", steps_offset=0),
    _scheduler("Karras sigmas", "timestep", use_karras_sigmas=True),
    _scheduler("betas rescaled to zero SNR", "trajectory", rescale_betas_zero_snr=True),
    _scheduler("sigmas interpolated in logarithms", "trajectory", interpolation_type="log_linear"),
    Fault("a scheduler of more steps", ONNX, GENERATION, _another_scheduler("HeunDiscreteScheduler"), "parity latents"),
    Fault("another scheduler", ONNX, GENERATION, _another_scheduler("DDIMScheduler"), "parity trajectory"),
    Fault(
        "the tokenizers exchanged",
        OPENVINO,
        GENERATION,
        _exchanged_tokenizers("tokenizer_config.json", "special_tokens_map.json"),
        "parity encoder_hidden_states",
    ),
    Fault(
        "another pad token",
        ONNX,
        GENERATION,
        _another_pad_token,
        "parity encoder_hidden_states",
    ),
    Fault("a tokenizer's merges cut short", ONNX, GENERATION, _without_merges, "parity encoder_hidden_states"),
    Fault("two tokens exchanged", ONNX, GENERATION, _two_words_exchanged, "parity encoder_hidden_states"),
    Fault(
        "an empty prompt encoded, not zeroed",
        ONNX,
        GENERATION,
        _json("model_index.json", force_zeros_for_empty_prompt=False),
        "parity encoder_hidden_states",
    ),
    Fault(
        "the other encoder's tokenizer as an OpenVINO graph",
        OPENVINO,
        "text_encoder_2",
        _tokenizer_of_the_other,
        "tokenizer openvino_tokenizer.xml",
    ),
)
