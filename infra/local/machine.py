"""What this machine has: cores, GPUs, free ports. Linux."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LOOPBACK = "127.0.0.1"
_GPUS = Path("/proc/driver/nvidia/gpus")
_CPU = Path("/proc/cpuinfo")
# Those of x86; torch asks oneDNN, which asks the processor for the same.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_of(pid: int) -> int:
    """Bytes of main memory that a process holds; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def gpu_count() -> int:
    """NVIDIA GPUs with a loaded driver."""
    return len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it; other ones take it apart, slowly."""
    lines = _CPU.read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return bool(_BFLOAT16_FLAGS & set(flags.split()))


def port_is_free(port: int) -> bool:
    """Whether a server can bind the loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


@contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Distinct free loopback ports, held until the block is left."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind((LOOPBACK, 0))
        yield [item.getsockname()[1] for item in sockets]
