"""What a program passes, in the types that are declared: refused by the argument's name before anything is done with it.

A command passes what its command line has read already; this is for calls from Python.
"""

from __future__ import annotations

import operator
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, SupportsIndex, Union, get_args, get_origin, get_type_hints

from .errors import UsageError

_WORDS = {
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    int: ("an integer", "integers"),
    bool: ("True or False", "booleans"),
    type(None): ("None", "None"),
}
"""Type -> what one and several of it are called."""
_LONGEST = 80  # characters of a wrong value


class _UnfitError(Exception):
    """A value that is not of the type."""


def fit_fields(options: Any) -> None:
    """Turn every field of a dataclass into its declared type, for `__post_init__`. Raises UsageError naming one that is not."""
    kinds = get_type_hints(type(options))
    for field in fields(options):
        object.__setattr__(options, field.name, fitted(getattr(options, field.name), kinds[field.name], field.name))


def fitted(value: object, kind: Any, name: str) -> Any:
    """The value as `kind`: a text is a path where one is wanted, and a list, or a single text or path, is a tuple.

    kind: a class, a union, `tuple[X, ...]` or `Mapping[str, X]`.  name: of the argument.
    Raises UsageError for any other value.
    """
    try:
        return _fit(value, kind)
    except _UnfitError:
        shown = repr(value)
        shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
        expected = _described(kind)
        raise UsageError(f"{shown} is not {expected}", source=name, remedy=f"give {expected}") from None


def _fit(value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _first(value, get_args(kind))
    if origin is tuple:
        return _several(value, get_args(kind)[0])
    if origin is Mapping and isinstance(value, Mapping):
        names, values = get_args(kind)
        return {_fit(key, names): _fit(item, values) for key, item in value.items()}
    if kind is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if kind is int:  # those of numpy are whole numbers too
        if isinstance(value, SupportsIndex) and not isinstance(value, bool):
            return operator.index(value)
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise _UnfitError


def _first(value: Any, kinds: Iterable[Any]) -> Any:
    for kind in kinds:
        try:
            return _fit(value, kind)
        except _UnfitError:
            continue
    raise _UnfitError


def _several(value: Any, kind: Any) -> tuple[Any, ...]:
    if isinstance(value, str | os.PathLike):
        return (_fit(value, kind),)
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise _UnfitError
    return tuple(_fit(item, kind) for item in value)


def _described(kind: Any) -> str:
    """`a string, a list of paths or None`."""
    *others, last = _alternatives(kind)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(kind: Any) -> list[str]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return [words for part in parts for words in _alternatives(part)]
    if origin is tuple:
        single = [] if parts[0] is int else _alternatives(parts[0])
        return [*single, f"a list of {_plural(parts[0])}"]
    if origin is Mapping:
        return [f"a mapping of {_plural(parts[0])} to {_plural(parts[1])}"]
    return [_WORDS[kind][0] if kind in _WORDS else f"an instance of {kind.__name__}"]


def _plural(kind: Any) -> str:
    return _WORDS[kind][1] if kind in _WORDS else _described(kind).replace("a mapping", "mappings")
