"""Names and formats of pictures: what is accepted before the work can be written after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vaefix.runtime.errors import RequestError, ResourceError, UsageError
from vaefix.runtime.output import check_format, check_place, named_after, numbered, save

SIZE = (48, 32)
SUFFIXES = sorted(Image.registered_extensions())


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_mandelbrot(SIZE, (-2, -1, 1, 1), 20).convert("RGB")


@pytest.mark.filterwarnings("ignore:.* image format is deprecated:DeprecationWarning")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_either_refused_before_the_work_or_can_be_written(
    suffix: str, picture: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / f"out{suffix}"
    try:
        check_place(path, Path("artifact"))
        check_format(path, SIZE[1], SIZE[0])
    except UsageError as error:
        assert error.exit_code == 2
        assert error.remedy
        return
    save(picture, path, replace=False)
    assert path.stat().st_size > 0


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif", ".pdf", ".eps"])
def test_the_usual_formats_are_accepted(suffix: str, tmp_path: Path) -> None:
    check_place(tmp_path / f"out{suffix}", Path("artifact"))
    check_format(tmp_path / f"out{suffix}", 1024, 1024)


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("out.psd", SIZE, "it can only be read"),
        ("out.xbm", SIZE, "cannot write mode RGB"),
        ("out.h5", SIZE, "not installed"),
        ("out.ico", (512, 512), "cannot hold a picture of 512x512"),
        ("out.webp", (20000, 32), "cannot hold a picture of 20000x32"),
        ("out.jpg", (32, 70000), "cannot hold a picture of 32x70000"),
    ],
)
def test_a_format_that_cannot_hold_the_picture_is_named(name: str, size: tuple[int, int], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        check_format(tmp_path / name, size[1], size[0])


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.png").mkdir()
    for path, reason in (
        (tmp_path / "out", "no picture format"),
        (tmp_path / "folder.png", "it is a folder"),
        (tmp_path / "nowhere" / "out.png", "its folder does not exist"),
    ):
        with pytest.raises(RequestError, match=reason):
            check_place(path, Path("artifact"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RequestError, match="may not be written"):
        check_place(tmp_path / "out.png", Path("artifact"))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A lighthouse, in the snow!", "a-lighthouse-in-the-snow.png"),
        ("../../etc/passwd", "etc-passwd.png"),
        ("", "picture.png"),
        ("!?", "picture.png"),
        ("雪の灯台", "雪の灯台.png"),
        ("word " * 100, "word-word-word-word-word-word-word-word-word-word-word-word.png"),
        ("x" * 500, f"{'x' * 60}.png"),
    ],
)
def test_a_picture_is_named_after_its_prompt(prompt: str, name: str, tmp_path: Path) -> None:
    assert named_after(prompt, 1, tmp_path) == [tmp_path / name]


def test_no_name_is_one_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a-cat.png").touch()
    (tmp_path / "a-cat-3.png").symlink_to("nothing")
    assert [path.name for path in named_after("a cat", 3, tmp_path)] == ["a-cat-2.png", "a-cat-4.png", "a-cat-5.png"]


def test_what_took_the_name_meanwhile_is_kept(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a-cat.png"
    path.write_text("mine")
    with pytest.raises(ResourceError, match="cannot be written"):
        save(picture, path, replace=False)
    assert path.read_text() == "mine"
    save(picture, path, replace=True)
    with Image.open(path) as kept:
        assert kept.size == SIZE


def test_several_pictures_are_numbered() -> None:
    assert numbered(Path("x/out.jpg"), 1) == [Path("x/out.jpg")]
    assert numbered(Path("x/out.jpg"), 2) == [Path("x/out-1.jpg"), Path("x/out-2.jpg")]
