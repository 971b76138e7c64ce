"""Want of memory is told from other failures by what libraries say of it."""

from __future__ import annotations

import pytest

from vaefix.runtime.errors import is_out_of_memory


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
