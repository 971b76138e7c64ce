"""The exact repair: powers of two that bring a component into the range of float16 without changing its float32 function."""
