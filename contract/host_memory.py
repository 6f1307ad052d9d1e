"""How much of this host's memory is to be had. Linux."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Bytes that can be taken without swapping, within this process's cgroup.

    What the cgroup keeps of files that were read does not count as taken: it goes first.
    """
    available = _figure(_MEMINFO.read_text(), "MemAvailable:") * 1024
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        files = _figure((_CGROUP / "memory.stat").read_text(), "inactive_file")
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return available
    return min(available, max(0, limit - max(0, used - files)))


def _figure(text: str, name: str) -> int:
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    raise ValueError(f"{name} is not there")
