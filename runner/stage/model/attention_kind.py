"""Which code computes a layer's attention: the one place that chooses."""

from __future__ import annotations

from enum import Enum, auto

import torch

LARGEST_FLASH_SIZE = 256
_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_CAPABILITY = (8, 0)  # Ampere


class AttentionKind(Enum):
    FLASH = auto()  # one call for all requests of a step
    BY_REQUEST = auto()  # plain torch


def attention_kind(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    key_size: int,
    value_size: int,
    softcap: float | None,
) -> AttentionKind:
    """By the compute capability of a CUDA device (None: another device), and what the layer is.

    torch's compiled flash kernel has half precision only, one head size for keys and values, a
    multiple of 8, and nothing that caps scores. Sinks are put in behind it.
    """
    fits = (
        capability is not None
        and capability >= _FLASH_CAPABILITY
        and dtype in _FLASH_DTYPES
        and key_size == value_size <= LARGEST_FLASH_SIZE
        and key_size % 8 == 0
        and softcap is None
    )
    return AttentionKind.FLASH if fits else AttentionKind.BY_REQUEST


def capability_of(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None
