"""What the KV caches of a stack mean to its users: how many requests there is room for at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.plan.layers import RankPlan

# Tokens of a request, prompt and answer together, that a reader can compare with their own.
LENGTHS = (2048, 8192)


@dataclass(frozen=True)
class KVRoom:
    """Every request is in every rank's cache: `rank` has the fewest `tokens`, and they decide.

    `requests` are (how many fit at once, tokens of each). `unknown` are the ranks that were not
    counted, whose memory is not known.
    """

    rank: int
    tokens: int
    requests: tuple[tuple[int, int], ...]
    unknown: tuple[int, ...]


def kv_room(ranks: Sequence[RankPlan], max_model_len: int | None) -> KVRoom | None:
    """None where no rank's memory is known. Requests are no longer than `max_model_len`."""
    known = {item.rank: item.kv_budget_tokens for item in ranks}
    counted = {rank: tokens for rank, tokens in known.items() if tokens is not None}
    if not counted:
        return None
    rank = min(counted, key=counted.__getitem__)
    tokens = counted[rank]
    lengths = sorted({min(length, max_model_len or length) for length in LENGTHS})
    return KVRoom(
        rank=rank,
        tokens=tokens,
        requests=tuple((tokens // length, length) for length in lengths),
        unknown=tuple(rank for rank in known if rank not in counted),
    )
