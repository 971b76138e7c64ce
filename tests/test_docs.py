"""The documents say what is there: files, options, commands, and a workflow that can be copied."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from vaefix.__main__ import COMMANDS

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
NOT_BUILT = "(not built)"
FOREIGN = {"--constraint", "--weight-format"}
"""Options of pip and optimum-cli."""
_WRITTEN = re.compile(r"(?:convert|docs|main|runtime|scripts|tests|validate)/[\w./-]*|[\w./-]+\.(?:py|toml|md|yml|txt|sh)")
_MADE = {"parity.xml", "vaefix.json"}


def paragraphs(name: str) -> Iterator[str]:
    """Paragraphs, and items of lists."""
    yield from re.split(r"\n\s*\n|\n(?=- |\d\. )", (ROOT / name).read_text(encoding="utf-8"))


@cache
def command(name: str) -> click.Command:
    """A subcommand of vaefix, or the command line library's own name of it."""
    return typer.main.get_command(importlib.import_module(COMMANDS[name]).app)


@cache
def options(name: str) -> frozenset[str]:
    """All spellings of a command's options."""
    return frozenset(word for parameter in command(name).params for word in parameter.opts) | {"--help"}


@cache
def options_of_scripts() -> frozenset[str]:
    """What stands in the scripts between quotes, or beside a `[`."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").iterdir() if path.is_file()]
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]+", "\n".join(texts)))


def unknown_options(text: str) -> set[str]:
    """Options that no command has, and that the text does not call not built."""
    known = set().union(*map(options, COMMANDS), options_of_scripts(), FOREIGN)
    written = {match[1]: match.end() for match in re.finditer(r"(?<![\w-])(--[a-z][\w-]+)", text)}
    return {name for name, end in written.items() if name not in known and NOT_BUILT not in text[end : end + 40]}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_option_that_is_named_exists_or_is_said_not_to(name: str) -> None:
    assert {option for text in paragraphs(name) for option in unknown_options(text)} == set()


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("`vaefix convert --vae DIR`", {"--vae"}),
        ("`--lora FILE` **(not built)**, `--static 1x1`", {"--static"}),
        ("`--target x --precision y`, `--pixels 3`, a--b, ---", set()),
    ],
)
def test_an_option_that_does_not_exist_would_be_found(text: str, unknown: set[str]) -> None:
    assert unknown_options(text) == unknown


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Subcommand and words of every command line of vaefix in blocks of code."""
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\?\n {8,}", " ", block).splitlines():
            words = shlex.split(line.partition(" #")[0]) if line.startswith("vaefix") else []
            if words and (name := words[0].partition("-")[2] or words[1]) in COMMANDS:
                yield name, words[1 if "-" in words[0] else 2 :]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_that_are_shown_have_the_options_they_are_shown_with(name: str) -> None:
    for subcommand, words in commands_in((ROOT / name).read_text(encoding="utf-8")):
        shown = {word.strip("[]") for word in words if word.startswith(("-", "[-"))}
        assert shown <= options(subcommand), f"vaefix {subcommand} {' '.join(words)}"


def test_the_readme_shows_every_subcommand() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {name for name, _ in commands_in(text)} >= {"convert", "run", "validate", "doctor"}
    assert text.index("## What it does not do") < text.index("## Install") < text.index("## Use")


def is_there(written: str) -> bool:
    """Whether a path, or a file of this name, is part of the project; also as a module's path without its beginning."""
    if (ROOT / written).exists() or (ROOT / "docs" / written).exists():
        return True
    folders = ("main", "convert", "runtime", "scripts", "tests", "validate")
    return any(next((ROOT / folder).rglob(written.rstrip("/")), None) for folder in folders)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    quoted = re.findall(r"`([^`\n]+)`|\]\(([^)#:]+)\)", text)
    blocks = re.findall(r"^(?:main|convert|runtime|validate)/\n(.*?)(?=^\w|```)", text, re.DOTALL | re.MULTILINE)
    written = {word for pair in quoted for part in pair for word in part.split() if _WRITTEN.fullmatch(word)}
    written |= {word for block in blocks for word in re.findall(r"[\w.]+\.py|(?<=  )\w+/", block)}
    assert {path for path in written - _MADE if not is_there(path)} == set()


WORKFLOW = yaml.safe_load((ROOT / "docs" / "parity.yml").read_text(encoding="utf-8"))
STEPS = [step["run"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "run" in step]


def run_words(step: str, model: str) -> list[str]:
    """A step as the shell would split it, with or without a model."""
    given = f'MODEL="{model}"; printf "%s\\n" {step}'
    return subprocess.run(["bash", "-c", given], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("model", ["", "organisation/a-model", "a folder/of mine"])
def test_the_commands_of_the_workflow_are_accepted(model: str) -> None:
    seen = set()
    for step in STEPS:
        words = run_words(step, model)
        if Path(words[0]).name == "vaefix":
            context = command(words[1]).make_context(words[1], words[2:])
            given = context.params.get("model") or context.params.get("reference")
            assert not given or str(given) == model
            seen.add(words[1])
    assert seen == {"doctor", "convert", "validate"}


def test_the_workflow_installs_from_a_checkout_and_states_the_memory() -> None:
    text = (ROOT / "docs" / "parity.yml").read_text(encoding="utf-8")
    for job in WORKFLOW["jobs"].values():
        (checkout,) = (step["with"] for step in job["steps"] if "repository" in step.get("with", {}))
        assert checkout == {"repository": "${{ env.VAEFIX }}", "path": "vaefix"}
        installed = [step["run"] for step in job["steps"] if "pip install" in step.get("run", "")]
        assert [line.split()[-1] for line in installed] == ["torch", '"./vaefix[openvino]"'], "PyTorch's CPU build first"
    assert "21.5 GiB" in text
    assert "SET THIS" in text


@pytest.mark.slow
def test_the_workflow_runs_from_a_checkout(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (tmp_path / "vaefix" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / "vaefix" / name)
    venv.create(tmp_path / "venv", with_pip=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    for step in STEPS:
        on_cpu = step.replace("--device GPU", "--device CPU").replace("pip install", "pip install --no-build-isolation")
        line = f'export PATH="{tmp_path}/venv/bin:$PATH" MODEL=; set -e; {on_cpu}'
        if "-m venv" not in step:
            done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    assert {path.name for path in tmp_path.glob("*.xml")} == {"emulated.xml", "arc.xml"}
