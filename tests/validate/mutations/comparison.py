"""Faults in the comparison itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vaefix.validate.saved import SavedReference

from .fault import GENERATION, ONNX, Fault, Patient
from .runtime import around


def _saved(patient: Patient) -> SavedReference:
    assert patient.options.load_reference is not None
    return SavedReference(patient.options.load_reference)


def _component_with_itself(patient: Patient) -> None:
    def replay(_open: Any, artifact: Any, component: str, **_named: Any) -> Any:
        options, entry = patient.options, artifact.component(component)
        case = _saved(patient).case(component, options.seeds, options.size, entry.precision)
        outputs = {name: values[0] for name, values in case.expected.stored.items()}
        return SimpleNamespace(outputs=tuple(outputs), run=lambda _feeds: outputs)

    around("vaefix.validate.components.open_session", replay)(patient)


def _generation_with_itself(patient: Patient) -> None:
    precisions = {name: entry.precision for name, entry in patient.artifact.components.items()}

    def replay(_generate: Any, _pipeline: Any, prompt: Any, **_named: Any) -> Any:
        return _saved(patient).generations([prompt], precisions)[0].stored

    around("vaefix.validate.drawing.generate", replay)(patient)


def _altered_reference(patient: Patient) -> None:
    source = patient.options.load_reference
    assert source is not None
    with safe_open(source, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    altered = {name: value * np.float32(1.001) for name, value in tensors.items() if name.endswith("/latent_parameters")}
    save_file({**tensors, **altered}, patient.folder / "altered.safetensors", metadata)
    patient.options = replace(patient.options, load_reference=patient.folder / "altered.safetensors")


_PLANTED = (
    Fault("a component compared with itself", ONNX, "text_encoder", _component_with_itself, "parity last_hidden_state"),
    Fault("a generation compared with itself", ONNX, GENERATION, _generation_with_itself, "parity encoder_hidden_states"),
    Fault("a saved reference altered", ONNX, "vae_encoder", _altered_reference, "parity latent_parameters"),
)
COMPARISON_FAULTS = tuple(replace(fault, where="the comparison") for fault in _PLANTED)
