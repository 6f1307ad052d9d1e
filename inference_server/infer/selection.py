"""Choosing a block by a selection query: the least loaded of those that match."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inference_server.blocks.aliases import READINESS_AGE_S
from inference_server.blocks.block import Block, known_ids
from inference_server.infer.query import PARAM, Tree, Variables
from inference_server.infer.session_blocks import SessionBlocks
from web.errors import ApiError

MAX_EXPLAINED = 10


class Selection:
    """Remembers the block of each session in `sessions`."""

    def __init__(self, sessions: SessionBlocks) -> None:
        self._sessions = sessions

    async def choose(self, query: Tree, session_id: str, among: Sequence[Block]) -> Block:
        """The session's block while that matches and is healthy, else the least loaded one.

        Raises ApiError: 404 that says for each block which condition it fails, 503 when the
        blocks that match are not ready.
        """
        matching = await _matching(query, among)
        reasons = await asyncio.gather(*(block.not_ready(READINESS_AGE_S) for block in matching))
        healthy = [block for block, why in zip(matching, reasons, strict=True) if not why]
        if not healthy:
            message = f"{PARAM}: {known_ids(matching)} would match: {'; '.join(reasons)}"
            raise ApiError(503, message, code="block_not_ready", headers={"Retry-After": "1"})
        kept = self._sessions.get("", session_id)
        block = next((one for one in healthy if one.block_id == kept), None)
        block = block or min(healthy, key=lambda one: one.load)
        self._sessions.remember("", session_id, block.block_id)
        return block


async def _matching(query: Tree, blocks: Sequence[Block]) -> list[Block]:
    components = await asyncio.gather(*(block.component() for block in blocks))
    matching, explained = [], []
    for block, component in zip(blocks, components, strict=True):
        failure = query.failure(Variables(block.spec, component))
        if not failure:
            matching.append(block)
            continue
        unread = "" if component else " (its component.json could not be read)"
        explained.append(f"{block.block_id}: {failure}{unread}")
    if matching:
        return matching
    reasons = explained[:MAX_EXPLAINED] or ["there is no block"]
    if len(explained) > MAX_EXPLAINED:
        reasons.append(f"and {len(explained) - MAX_EXPLAINED} more")
    message = f"{PARAM}: no block matches: {'; '.join(reasons)}"
    raise ApiError(404, message, param=PARAM, code="no_block_matches")
