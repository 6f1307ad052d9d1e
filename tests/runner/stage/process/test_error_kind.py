"""Which exceptions mean too little memory, which a broken device: torch's own classes and words."""

from __future__ import annotations

import pytest
import torch

from runner.errors import RunnerError
from runner.stage.process.error_kind import ErrorKind, error_kind

ADVICE = (
    "\nSearch for `cudaErrorIllegalAddress' in the documentation of CUDA.\nCUDA kernel errors might"
    " be asynchronously reported at some other API call; out of memory is none of this advice.\n"
)
MEMORY: tuple[BaseException, ...] = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 0 bytes"),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    MemoryError("Unable to allocate 3.00 GiB for an array with shape (1,)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory:"
        " you tried to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("std::bad_alloc"),
    torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
)
DEVICE = (
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ADVICE),
    torch.AcceleratorError("CUDA error: device-side assert triggered" + ADVICE),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + ADVICE),
    torch.AcceleratorError("CUDA error: unspecified launch failure" + ADVICE),
    torch.AcceleratorError("whatever a device of another kind says"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),  # before torch 2.9
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
    RuntimeError("CUDA driver error: device not ready"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
)
OTHER = (
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("the input says CUDA error: and std::vector"),
    RunnerError("request 3: has no KV slot; admit it first"),
    ValueError("CUDA error: an illegal memory access was encountered"),
    RunnerError("CUDA out of memory"),
    AssertionError(),
    IndexError("index out of range in self"),
    NotImplementedError("Could not run 'aten::x' with arguments from the 'CUDA' backend"),
    OSError(12, "Cannot allocate memory"),
)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, ErrorKind.MEMORY) for error in MEMORY),
        *((error, ErrorKind.DEVICE) for error in DEVICE),
        *((error, ErrorKind.OTHER) for error in OTHER),
    ],
    ids=lambda value: str(value).partition("\n")[0][:50],
)
def test_the_kind_of_an_error(error: BaseException, kind: ErrorKind) -> None:
    assert error_kind(error) is kind


def test_what_cuda_itself_returns() -> None:
    """torch asks CUDA for the words, which are not there without its library."""
    error = torch.cuda.CudaError.__new__(torch.cuda.CudaError)
    RuntimeError.__init__(error, "out of memory (2)")
    assert error_kind(error) is ErrorKind.MEMORY
    error.args = ("an illegal memory access was encountered (700)",)
    assert error_kind(error) is ErrorKind.DEVICE


def test_what_torch_raises_here_when_the_host_has_too_little() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.uint8)
    assert error_kind(raised.value) is ErrorKind.MEMORY


def test_what_torch_raises_here_for_a_wrong_shape() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert error_kind(raised.value) is ErrorKind.OTHER
