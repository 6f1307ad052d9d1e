"""What the C libraries keep of a stage's memory.

By default glibc keeps freed blocks of up to 32 MiB for itself: a stage that frees each matrix
after packing it would still hold both copies, and one that was busy once would stay large.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_WHILE_LOADING_BYTES = 128 * 1024
# What glibc's own adjustment ends at: activations are taken from kept memory, not mapped anew.
_WHILE_SERVING_BYTES = 32 * 2**20

# oneDNN prepares a kernel for each number of rows that a matrix of some shape is multiplied with:
# about 0.8 MB, which it and torch keep for the last 1,024 in a cache each. This many cover all
# batches of 32 requests with 8 shapes of matrices; preparing one anew takes a millisecond.
PREPARED_KERNELS = 256
_KERNEL_CACHES = {  # by environment variable: oneDNN counts the kernel inside a kernel too
    "LRU_CACHE_CAPACITY": PREPARED_KERNELS,
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": 2 * PREPARED_KERNELS,
}


def limit_kernel_caches() -> None:
    """Must come before the process's first matrix product; a variable that is set already stays."""
    for name, capacity in _KERNEL_CACHES.items():
        os.environ.setdefault(name, str(capacity))


@contextmanager
def freed_memory_is_given_back() -> Iterator[None]:
    """Without effect where the C library has no mallopt."""
    _set_thresholds(_WHILE_LOADING_BYTES)
    try:
        yield
    finally:
        _set_thresholds(_WHILE_SERVING_BYTES)


def _set_thresholds(size: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)
        mallopt(_M_TRIM_THRESHOLD, 2 * size)


def give_back_freed() -> None:
    """Return what was freed and kept; takes milliseconds, and the next step maps it again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def give_back(tensor: torch.Tensor) -> None:
    """Return the pages of a contiguous tensor that nobody will read again: it reads as zeros.

    Only whole pages inside of it; the memory must be the process's own, not a mapped file.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        size = ctypes.c_size_t(end - begin)
        madvise(ctypes.c_void_p(begin), size, ctypes.c_int(mmap.MADV_DONTNEED))
