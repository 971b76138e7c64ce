"""What a comparison writes takes the place of nothing that is there for another purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from vaefix.runtime.errors import RequestError, UsageError
from vaefix.validate.outputs import SAVED_FORMAT, check_apart, check_saved


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An artifact and a model, of one file each."""
    for name in ("artifact", "model"):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "config.json").write_text("{}")
    return tmp_path / "artifact", tmp_path / "model"


@pytest.mark.parametrize(
    "place",
    [
        lambda artifact, model: model / "unet" / "config.json",
        lambda artifact, model: model / "new.json",
        lambda artifact, model: model / "unet" / ".." / "new.json",
        lambda artifact, model: artifact / "unet" / "config.json",
    ],
    ids=["a file of the model", "a new one in it", "by a detour", "a file of the artifact"],
)
@pytest.mark.parametrize("linked", [False, True])
def test_files_of_the_model_and_the_artifact_stay(
    place: Callable[[Path, Path], Path], linked: bool, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    path = place(*folders)
    if linked:
        (tmp_path / "link.json").symlink_to(path)
        path = tmp_path / "link.json"
    with pytest.raises(RequestError, match="lies in the model|is a file of the artifact"):
        check_apart([tmp_path / "fine.json", path], *folders)


def test_others_may_lie_anywhere_else(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "older.html").touch()
    check_apart([tmp_path / "older.html", folders[0] / "report.html", tmp_path / "model.json"], *folders)
    check_apart([tmp_path / "older.html"], folders[0], None)


def test_two_files_of_one_name_are_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "same").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="given for two files"):
        check_apart([tmp_path / "r.json", tmp_path / "same" / "r.json"], *folders)


def test_a_saved_reference_replaces_a_saved_reference_alone(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    check_saved(path)
    save_file({"a": np.zeros(1)}, path, {"format": SAVED_FORMAT})
    check_saved(path)
    save_file({"a": np.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(RequestError, match="no saved reference"):
        check_saved(path)
    path.write_text("a text")
    with pytest.raises(RequestError, match="no saved reference"):
        check_saved(path)
