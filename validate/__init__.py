"""Artifact against reference -> verdict. Importing this package loads no engine; calling it compares: `validate.validate`."""

from vaefix.runtime.called import make_called

make_called(__name__)
