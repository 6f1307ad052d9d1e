"""Printing the logs of a stack's processes, each line with its process's name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_POLL_S = 0.2


def log_lines(files: Sequence[Path], *, follow: bool) -> Iterator[str]:
    """Whole lines, in the order in which they are found; with `follow` it does not end."""
    width = max((len(path.stem) for path in files), default=0)
    positions = dict.fromkeys(files, 0)
    while True:
        found = False
        for path in files:
            for line in _new_lines(path, positions):
                found = True
                yield f"{path.stem:<{width}} | {line}"
        if not found:
            if not follow:
                return
            time.sleep(_POLL_S)


def _new_lines(path: Path, positions: dict[Path, int]) -> list[str]:
    """What was added since the last call, up to the last line end."""
    if not path.exists():
        return []
    if path.stat().st_size < positions[path]:  # a new run has emptied it
        positions[path] = 0
    with path.open("rb") as file:
        file.seek(positions[path])
        whole, newline, _ = file.read().rpartition(b"\n")
    positions[path] += len(whole) + len(newline)
    return whole.decode("utf-8", "replace").split("\n") if newline else []
