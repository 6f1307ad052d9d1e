"""What an exception of a step says of the device that computed it."""

from __future__ import annotations

from enum import Enum, auto

import torch
from torch.cuda import CudaError


class ErrorKind(Enum):
    """What can be done about it."""

    MEMORY = auto()  # too little of it: the same step may pass once some is given back
    DEVICE = auto()  # the process's context on the device is of no use any more
    OTHER = auto()  # of that step alone


# How torch and Triton begin what CUDA's runtime, driver and libraries told them: "CUDA error: an
# illegal memory access was encountered". Not all of these break the context, but none is mended
# by computing on, and nothing is lost by a new process but the time of a load.
_OF_CUDA = ("CUDA error: ", "CUDA driver error: ", "Triton Error [CUDA]: ")
# Where memory ends outside of CUDA's caching allocator, which raises OutOfMemoryError.
_SHORTAGES = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
# torch's allocator for the host and C++'s own; both come as RuntimeError.
_OF_THE_HOST = ("DefaultCPUAllocator: can't allocate memory", "std::bad_alloc")


def error_kind(error: BaseException) -> ErrorKind:
    """By class where there is one, else by the words that torch puts into a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ErrorKind.MEMORY
    if not isinstance(error, RuntimeError):
        return ErrorKind.OTHER
    text = str(error)
    if any(words in text for words in _OF_THE_HOST):
        return ErrorKind.MEMORY
    if isinstance(error, torch.AcceleratorError | CudaError) or text.startswith(_OF_CUDA):
        told = text.partition("\n")[0]  # behind it: advice, and a stack of C++ frames
        return ErrorKind.MEMORY if any(words in told for words in _SHORTAGES) else ErrorKind.DEVICE
    return ErrorKind.OTHER
