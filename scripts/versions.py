"""What scripts/versions installs, and what it found installed.

`lowest` prints a pip constraint for each package that vaefix declares, `==` its lower bound; `newest` prints none, since pip
takes the newest that the ranges allow; `installed` prints the versions as rows of docs/versions.md.
"""

from __future__ import annotations

import argparse
import platform
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("openvino", "onnx")


def declared(pyproject: Path) -> Iterator[Requirement]:
    """What a user installs: the dependencies, and those of EXTRAS."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = (text for name in EXTRAS for text in project["optional-dependencies"][name])
    return map(Requirement, (*project["dependencies"], *extras))


def lowest(requirement: Requirement) -> str:
    """`package==` its lower bound. Raises ValueError for a package without one."""
    bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} has no single lower bound")
    return f"{requirement.name}=={bounds[0]}"


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("lowest", "newest", "installed"))
    parser.add_argument("pyproject", type=Path)
    arguments = parser.parse_args()
    requirements = list(declared(arguments.pyproject))
    if arguments.what == "lowest":
        print(*map(lowest, requirements), sep="\n")
    elif arguments.what == "installed":
        print(f"| Python | {platform.python_version()} |")
        print(*(f"| {item.name} | {metadata.version(item.name)} |" for item in requirements), sep="\n")


if __name__ == "__main__":
    main()
