"""What CUDA's driver says of the device that a stage uses. Without torch, which is imported later,
and without a context, which would take memory."""

from __future__ import annotations

import ctypes
import logging
import uuid
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_LIBRARY = "libcuda.so.1"
_UUID_BYTES = 16


@dataclass(frozen=True)
class FoundDevice:
    """`uuid` as in "GPU-0a1b2c3d-...", "" where nobody tells; `memory_bytes` is all that it has."""

    uuid: str = ""
    memory_bytes: int | None = None


def found_device(device: str) -> FoundDevice:
    """Of "cuda:0" what the driver calls so, after CUDA_VISIBLE_DEVICES; nothing of a CPU.

    The first call of a process may take seconds.
    """
    kind, _, ordinal = device.partition(":")
    if kind != "cuda":
        return FoundDevice()
    try:
        return _ask(ctypes.CDLL(_LIBRARY), int(ordinal or 0))
    except (OSError, AttributeError, _DriverError) as error:
        # No reason to end: what computes finds out whether there is a device.
        logger.warning("the UUID of %s is not known: %s", device, error)
        return FoundDevice()


class _DriverError(Exception):
    """A call of the driver's did not succeed."""


def _ask(driver: ctypes.CDLL, ordinal: int) -> FoundDevice:
    """https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html"""
    place, memory = ctypes.c_int(), ctypes.c_size_t()
    found = (ctypes.c_ubyte * _UUID_BYTES)()
    _check("cuInit", driver.cuInit(0))
    _check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(place), ordinal))
    # Of a part of a GPU (MIG) the second version tells its own.
    _check("cuDeviceGetUuid_v2", driver.cuDeviceGetUuid_v2(found, place))
    _check("cuDeviceTotalMem_v2", driver.cuDeviceTotalMem_v2(ctypes.byref(memory), place))
    return FoundDevice(f"GPU-{uuid.UUID(bytes=bytes(found))}", memory.value)


def _check(call: str, code: int) -> None:
    if code:
        raise _DriverError(f"{call} answers {code}")
