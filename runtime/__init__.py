"""Artifact -> pictures. Importing this package, or any module of it but `modules` and `backends`, loads no engine."""
