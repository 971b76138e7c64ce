"""`vaefix doctor`: what is installed here, what it can run, and whether an artifact or a model is whole."""
