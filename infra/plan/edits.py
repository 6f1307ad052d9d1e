"""The sorting of an edit: what each changed key of a stack costs the group. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from infra.plan.applied import Applied
from infra.plan.edit_keys import RANK_KEYS, ROOM_KEYS, STACK_KEYS, TOKEN, Kind
from infra.plan.table import byte_size

_ORDER: tuple[Kind, ...] = ("free", "swap", "pod", "all pods")
_BYTES = {"memory", "device_memory"}


@dataclass(frozen=True)
class Change:
    """One key. `rank` None: the whole stack's. `before` and `after` are "" for a secret."""

    kind: Kind
    key: str
    before: Any
    after: Any
    rank: int | None = None


def sort_edit(old: Applied, new: Applied) -> list[Change]:
    """Every key that differs, the cheapest kind first.

    Fewer ranks are a swap, unless another rank wants room that a rank holds which is to go: then
    all pods go first. Keys that `old` does not know (another version wrote it) are left out.
    """
    found = [*_stack_changes(old, new), *_rank_changes(old, new)]
    return sorted(found, key=lambda change: _ORDER.index(change.kind))


def wants_room(old: Applied, new: Applied) -> bool:
    """Whether a rank that stays, or a new one, asks for room that it did not hold before."""
    if len(new.ranks) > len(old.ranks):
        return True
    return any(
        change.rank is not None and change.key in ROOM_KEYS and _is_more(change)
        for change in _rank_changes(old, new)
    )


def edit_lines(changes: Sequence[Change], ranks: int) -> list[str]:
    """One sentence pair for each kind that occurs: what differs, and what that means."""
    lines = []
    for kind in _ORDER:
        alike = [change for change in changes if change.kind == kind]
        if alike:
            told = "; ".join(_told(alike))
            lines.append(f"{kind}: {told}. {_meaning(kind, alike, ranks)}")
    return lines


def _stack_changes(old: Applied, new: Applied) -> Iterator[Change]:
    for key, kind in STACK_KEYS.items():
        if key not in old.stack or old.stack[key] == new.stack[key]:
            continue
        before, after = old.stack[key], new.stack[key]
        if key == "nnodes" and after < before and wants_room(old, new):
            kind = "all pods"
        secret = key == TOKEN
        yield Change(kind, key, "" if secret else before, "" if secret else after)


def _rank_changes(old: Applied, new: Applied) -> Iterator[Change]:
    for rank, (before, after) in enumerate(zip(old.ranks, new.ranks, strict=False)):
        for key, kind in RANK_KEYS.items():
            if key in before and before[key] != after[key]:
                yield Change(kind, key, before[key], after[key], rank)


def _is_more(change: Change) -> bool:
    numbers = (int, float)
    if isinstance(change.before, numbers) and isinstance(change.after, numbers):
        return change.after > change.before
    return True


def _told(changes: Sequence[Change]) -> Iterator[str]:
    """Each key once, with its values where they are short: of a rank's key, by rank."""
    by_key: dict[str, list[Change]] = {}
    for change in changes:
        by_key.setdefault(change.key, []).append(change)
    for key, alike in by_key.items():
        if alike[0].rank is None:
            yield f"{_name(key)}{_values(alike[0])}"
        else:
            yield f"{key} of " + ", ".join(f"rank {it.rank}{_values(it)}" for it in alike)


def _name(key: str) -> str:
    return key.removeprefix("common_params.")


def _values(change: Change) -> str:
    pair = change.before, change.after
    # What a list or a mapping holds is not repeated here: variables may have values to keep.
    if change.key == TOKEN or any(isinstance(value, dict | list) for value in pair):
        return ""
    before, after = (_shown(change.key, value) for value in pair)
    return f" {before} -> {after}"


def _shown(key: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if key in _BYTES:
        return byte_size(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meaning(kind: Kind, changes: Sequence[Change], ranks: int) -> str:
    if kind == "free":
        return "Taken between two steps; nothing is away"
    if kind == "swap":
        return (
            "The ranks fetch and check it while what runs goes on serving; then running requests "
            "finish, new ones wait, and the weights are swapped. No pod is replaced for it"
        )
    touched = {change.rank for change in changes}
    if kind == "all pods" or None in touched or len(touched) == ranks:
        return "Every rank's pod is replaced: the model is away until all of them have loaded"
    names = ", ".join(str(rank) for rank in sorted(rank for rank in touched if rank is not None))
    pods = f"The pod of rank {names} is" if len(touched) == 1 else f"The pods of ranks {names} are"
    return f"{pods} replaced: the model is away until loaded there; the other ranks keep theirs"
