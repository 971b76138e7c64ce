"""One engine per file, found by listing this folder; the file's name is the engine's, and nothing else imports the engine.

Each offers `open_session(model, component, *, device, execution, options) -> Session`.
"""
