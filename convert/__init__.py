"""Checkpoint -> artifact. Importing this package loads no engine."""
