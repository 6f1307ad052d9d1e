"""Giving memory back to the system while weights are loaded and packed.

By default glibc keeps freed blocks of up to 32 MiB for itself, and a stage that frees each matrix
after packing it would still hold both copies.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_WHILE_LOADING_BYTES = 128 * 1024
# What glibc's own adjustment ends at: activations are taken from kept memory, not mapped anew.
_WHILE_SERVING_BYTES = 32 * 2**20


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
