"""Is there a way for a traceback to reach a user? Read from the source of the packages; part of `scripts/check`.

Every command passes through `boundary.guarded`, which makes one message of whatever is raised. This holds that it cannot be
passed by:

1. Every console script is a function of `vaefix.__main__`, which calls `_start` and nothing else; a module that can be run
   calls its `main`, and that calls `run`.
2. What is imported before the boundary is the standard library, the boundary and the errors.
3. No command line application shows exceptions by itself.
4. Nobody but the boundary, and those in ALLOWED, catches everything.
5. What an `except` raises is an error of vaefix, or what it has caught.
6. Nothing prints a traceback or fails where no `except` can catch it: no threads, finalizers or exit handlers.
"""

from __future__ import annotations

import ast
import builtins
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("main", "convert", "runtime", "validate")
ALLOWED = {"runtime/boundary.py"}
"""Files that may catch everything: a foreign library is called there, whose errors are its own."""
_FIRST = {"main/__init__.py", "main/__main__.py", "runtime/__init__.py", "runtime/boundary.py", "runtime/errors.py"}
_BEFORE = {"vaefix.runtime.boundary", ".errors"}
_FORBIDDEN = {"print_exc", "print_exception", "print_tb", "print_stack", "excepthook", "Thread", "Timer", "finalize", "atexit"}
_EVERYTHING = {"Exception", "BaseException"}


def faults(name: str, text: str) -> Iterator[str]:
    """What is wrong in one file. name: its path in the checkout, with forward slashes."""
    tree = ast.parse(text)
    if name in _FIRST:
        yield from _early_imports(name, tree)
    yield from _runnable(name, tree)
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Call(func=ast.Attribute(attr="Typer"), keywords=options):
                if "pretty_exceptions_enable" not in {option.arg for option in options}:
                    yield f"{where}: a Typer without pretty_exceptions_enable=False"
            case ast.ExceptHandler(type=caught, body=body):
                yield from _handler(name, where, caught, body)
            case ast.Name(id=used) | ast.Attribute(attr=used) | ast.alias(name=used):
                if used in _FORBIDDEN and name not in ALLOWED:
                    yield f"{where}: {used}"
            case ast.FunctionDef(name="__del__"):
                yield f"{where}: __del__"


def _handler(name: str, where: str, caught: ast.expr | None, body: list[ast.stmt]) -> Iterator[str]:
    named = {part.id for part in ast.walk(caught) if isinstance(part, ast.Name)} if caught else _EVERYTHING
    if named & _EVERYTHING and name not in ALLOWED:
        yield f"{where}: catches everything"
    for statement in body:
        for node in ast.walk(statement):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=raised)) | ast.Name(id=raised)):
                    if isinstance(getattr(builtins, raised, None), type):
                        yield f"{where}: raises {raised} where an error of vaefix belongs"


def _early_imports(name: str, tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=module, level=level):
                modules = ["." * level + (module or "")]
            case _:
                continue
        for module in modules:
            if module.partition(".")[0] not in sys.stdlib_module_names and module not in _BEFORE:
                yield f"{name}:{node.lineno}: imports {module} before the boundary"


def _runnable(name: str, tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if (
            isinstance(node, ast.If)
            and "__name__" in ast.unparse(node.test)
            and [ast.unparse(part) for part in node.body] not in (["main()"], ["sys.exit(main())"])
        ):
            yield f"{name}:{node.lineno}: runs something else than main()"
        if isinstance(node, ast.FunctionDef) and node.name == "main" and name != "main/__main__.py":
            calls = [ast.unparse(statement) for statement in node.body[1:]]
            if calls not in (["run(app)"], ["command.run(app)"]):
                yield f"{name}:{node.lineno}: main() does something else than run(app)"


def scripts(project: str, entry: str) -> Iterator[str]:
    """What is wrong with the console scripts. project: pyproject.toml.  entry: the text of main/__main__.py."""
    functions = {node.name: node.body[-1] for node in ast.parse(entry).body if isinstance(node, ast.FunctionDef)}
    for script, target in tomllib.loads(project)["project"]["scripts"].items():
        module, _, function = target.partition(":")
        last = functions.get(function)
        if module != "vaefix.__main__" or last is None or not ast.unparse(last).startswith("_start("):
            yield f"pyproject.toml: {script} is {target}, which does not end in _start(...)"
    if "guarded(" not in ast.unparse(functions["_start"]):
        yield "main/__main__.py: _start does not end in guarded(...)"


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    found = list(scripts((ROOT / "pyproject.toml").read_text("utf-8"), (ROOT / "main/__main__.py").read_text("utf-8")))
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            found += faults(file.relative_to(ROOT).as_posix(), file.read_text("utf-8"))
    print(*found, sep="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
