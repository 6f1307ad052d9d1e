"""Names that stand for several blocks with weights: which of them a request goes to."""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from inference_server.blocks.block import Block
from inference_server.blocks.table import BlockTable
from web.errors import ApiError
from web.upstream import READY_POLL_S

# Choosing does not ask for health more often than this.
READINESS_AGE_S = 1.0
# A session's block has so long to come back before the session begins anew at the next one: about
# what a rank group takes to form again.
SESSION_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Choice:
    """Whom a request may be put to, in this order; the rest as in Attempts."""

    blocks: Sequence[Block]
    aliased: bool = False
    patience_s: float = 0.0


class Alias:
    """`weights` is the share of each block id; one with 0 gets what the others cannot take."""

    def __init__(self, name: str, weights: Mapping[str, int], table: BlockTable) -> None:
        self.name, self.weights = name, weights
        self._table = table

    def blocks(self) -> list[Block]:
        """Those that the table has, the largest share first."""
        shares = sorted(self.weights.items(), key=lambda item: -item[1])
        return [block for name, _ in shares if (block := self._table.get(name)) is not None]

    async def in_order(self, key: str) -> list[Block]:
        """Whom to ask, one after the other: those that serve, then the rest.

        Equal keys get the same order while blocks and weights stay, "" is nobody's key. Raises
        ApiError 503 where the table has none of the blocks.
        """
        key = key or secrets.token_hex(8)
        blocks = sorted(self.blocks(), key=lambda one: -self._score(one, key))
        return await self._those_that_serve_first(blocks)

    async def first(self) -> Block:
        """The one with the largest share of those that serve; raises as `in_order`."""
        return (await self._those_that_serve_first(self.blocks()))[0]

    async def for_session(self, session_id: str, kept: str | None) -> Choice:
        """As `in_order`; first the block that holds the session, while it is up.

        `kept` is the block that had it last. Where nobody remembers, the blocks are asked.
        """
        if kept is None:
            held = await self._holder(session_id)
        else:
            held = self._table.get(kept) if kept in self.weights else None
        if held is None or not await _is_up(held):
            return Choice(await self.in_order(session_id), aliased=True)
        others = [block for block in await self.in_order(session_id) if block is not held]
        return Choice([held, *others], aliased=True, patience_s=SESSION_PATIENCE_S)

    async def _those_that_serve_first(self, blocks: Sequence[Block]) -> list[Block]:
        """In their order otherwise."""
        if not blocks:
            known = ", ".join(self.weights)
            message = f"model = {self.name}: none of its blocks ({known}) is among those known here"
            headers = {"Retry-After": "1"}
            raise ApiError(503, message, param="model", code="block_not_ready", headers=headers)
        reasons = await asyncio.gather(*(one.not_ready(READINESS_AGE_S) for one in blocks))
        down = {one.block_id for one, why in zip(blocks, reasons, strict=True) if why}
        return sorted(blocks, key=lambda one: one.block_id in down)

    async def _holder(self, session_id: str) -> Block | None:
        """The block that answered last in a session, None where it has not begun."""
        blocks = self.blocks()
        asked = await asyncio.gather(*(block.last_seq_no(session_id) for block in blocks))
        held = [(seq_no, block) for seq_no, block in zip(asked, blocks, strict=True) if seq_no >= 0]
        return max(held, key=lambda item: item[0])[1] if held else None

    def _score(self, block: Block, key: str) -> float:
        """Weighted rendezvous hashing: a share that changes moves only as many keys as it must."""
        digest = hashlib.blake2b(f"{key}\0{block.block_id}".encode(), digest_size=6).digest()
        part = (int.from_bytes(digest) + 0.5) / 2**48  # never 1
        weight = self.weights[block.block_id]
        # Without a share: behind all that have one.
        return -weight / math.log(part) if weight else part - 1


class Aliases:
    """The aliases of a server by name."""

    def __init__(self, weights: Mapping[str, Mapping[str, int]], table: BlockTable) -> None:
        self._aliases = {name: Alias(name, item, table) for name, item in weights.items()}

    def __iter__(self) -> Iterator[Alias]:
        return iter(self._aliases.values())

    def get(self, name: str) -> Alias | None:
        """An alias goes before a block, and a model, of its name."""
        return self._aliases.get(name)

    @property
    def names(self) -> list[str]:
        return list(self._aliases)


async def _is_up(block: Block) -> bool:
    """Within SESSION_PATIENCE_S."""
    if not await block.not_ready(READINESS_AGE_S):
        return True
    until = asyncio.get_running_loop().time() + SESSION_PATIENCE_S
    while not block.gone and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(READY_POLL_S)
        if not await block.not_ready(READY_POLL_S):
            return True
    return False
