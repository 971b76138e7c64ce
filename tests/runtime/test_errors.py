"""Want of memory is told from other failures by what libraries say of it."""

from __future__ import annotations

import pytest

from vaefix.runtime.errors import VaefixError, in_one_line, is_out_of_memory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[CPU] Transpose node with name 'Transpose_87617' can't alloc", True),  # OpenVINO
        ("Failed to allocate 9437184 bytes of memory", True),
        ("clEnqueueNDRangeKernel, error code: -5 CL_OUT_OF_RESOURCES", True),
        ("void* Failed to allocate memory for requested buffer of size 1179648", True),  # ONNX Runtime
        ("CUBLAS_STATUS_ALLOC_FAILED", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),  # PyTorch
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("std::bad_alloc", True),
        ("Unable to allocate 8 GiB for an array", True),  # numpy
        ("shape mismatch", False),
        ("the location of the file is unknown", False),
    ],
)
def test_want_of_memory_is_known_by_its_words(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is expected


def test_python_s_own_error_says_it_without_words() -> None:
    assert is_out_of_memory(MemoryError())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("it broke\nat line 3", "it broke"),
        ("Validation error for field 'a':\n\n    TypeError: Field 'a' expected float\n  more", None),
        ("\n one of:\n two of:\n  three\nfour", "one of: two of: three"),
        ("it ends so:", "it ends so:"),
        ("", ""),
        ("x" * 99, "x" * 60 + "..."),
    ],
)
def test_what_another_program_says_is_one_line_that_says_something(text: str, said: str | None) -> None:
    expected = "Validation error for field 'a': TypeError: Field 'a' expected float"[:60] + "..." if said is None else said
    assert in_one_line(text, 60) == expected


def test_the_whole_is_one_line_too() -> None:
    assert in_one_line("404\n\nnot found\n", 60, whole=True) == "404 not found"


def test_a_message_is_one_line_whatever_its_reason() -> None:
    error = VaefixError("first\n  second\n", source="x", remedy="try")
    assert (error.reason, str(error)) == ("first second", "x: first second\n  remedy: try")
