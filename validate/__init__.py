"""Artifact against reference -> verdict. Importing this package loads no engine."""
