"""Checkpoint -> artifact. Importing this package loads no engine; calling it converts: `convert.convert`."""

from vaefix.runtime.called import make_called

make_called(__name__)
