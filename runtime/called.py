"""A package that can be called: `vaefix.convert` is both a package and the function that most people want of it."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from .arguments import fitted


class CalledPackage(ModuleType):
    """A package whose call is that of the function of its own name, in the module of its own name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function takes, or the fields of its options by name. Raises UsageError for one of a wrong type."""
        name = self.__name__.rpartition(".")[2]
        module = import_module(f"{self.__name__}.{name}")
        options = getattr(module, f"{name.capitalize()}Options")
        if arguments:
            given = fitted(arguments[0], options, "options")
            return getattr(module, name)(given, *arguments[1:], **named)
        own = {key: named.pop(key) for key in ("progress",) if key in named}
        return getattr(module, name)(options(**named), **own)


def make_called(package: str) -> None:
    """Let the package of this full name be called; it calls this itself."""
    sys.modules[package].__class__ = CalledPackage
