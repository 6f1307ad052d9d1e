"""How many positions a stage's KV cache may hold."""

from __future__ import annotations

from pathlib import Path

import torch

from contract.specs import GroupSpec, RankSpec
from runner.errors import RunnerError

RESERVED_BYTES = 1_000_000_000  # the interpreter, torch, activations
CUDA_SHARE = 0.9  # of what is free once the weights are loaded
HOST_SHARE = 0.5  # of what is available when no limit is declared
_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def kv_tokens(
    spec: GroupSpec, rank: RankSpec, *, weight_bytes: int, kv_bytes_per_token: int
) -> int:
    """Positions in all, over every request; raises RunnerError where the weights leave no room.

    CPU with a declared memory: that less the weights less 1 GB. CPU without: half of what is
    available now, shared by the ranks of the same node. CUDA: 9/10 of what is free.
    """
    if torch.device(rank.device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(torch.device(rank.device))
        room = int(free * CUDA_SHARE)
    elif rank.memory_bytes is not None:
        room = rank.memory_bytes - weight_bytes - RESERVED_BYTES
    else:
        sharing = sum(other.node == rank.node for other in spec.ranks)
        room = int(_available_bytes() * HOST_SHARE) // sharing
    tokens = room // max(1, kv_bytes_per_token)
    if tokens < 1:
        raise RunnerError(
            f"rank {rank.rank}: its weights of {weight_bytes} bytes leave no memory for a KV cache:"
            " give it more memory or fewer layers"
        )
    return tokens


def _available_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    else:
        available = RESERVED_BYTES
    try:
        return min(available, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return available
