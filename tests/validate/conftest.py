"""A copy of an fp16 artifact that a test may damage in a way that its hashes do not give away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaefix.runtime.artifact import Artifact

from .stored import reseal, stored_weight

Change = Callable[[np.ndarray], None]


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """A copy of the artifact for OpenVINO, or of the one whose fixture is the parameter."""
    original: Artifact = request.getfixturevalue(getattr(request, "param", "demo_artifact_fp16"))
    return replace(original, folder=Path(shutil.copytree(original.folder, tmp_path / "copied")))


@pytest.fixture
def edit_weight(copied: Artifact) -> Callable[[str, str, Change], None]:
    """edit_weight(component, parameter, change): change one stored weight of the copy in place."""

    def edit(component: str, parameter: str, change: Change) -> None:
        weight = stored_weight(copied, component, parameter)
        before = weight.copy()
        change(weight)
        assert not np.array_equal(before, weight), "nothing was changed"
        weight.flush()
        reseal(copied)

    return edit


@pytest.fixture
def edit_text(copied: Artifact) -> Callable[[str, str, str], None]:
    """edit_text(file, old, new): change a file of the copy."""

    def edit(file: str, old: str, new: str) -> None:
        path = copied.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        reseal(copied)

    return edit
