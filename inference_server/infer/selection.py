"""Choosing a block by a selection query: the least loaded of those that match."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from inference_server.blocks.block import Block, known_ids
from inference_server.infer.query import PARAM, Tree, Variables
from web.errors import ApiError

MAX_SESSIONS = 10_000
MAX_EXPLAINED = 10
# Choosing does not ask for health more often than this.
READINESS_AGE_S = 1.0


class Selection:
    """Remembers the block of each session, the last MAX_SESSIONS of them."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, str] = OrderedDict()

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
        kept = self._sessions.get(session_id)
        block = next((one for one in healthy if one.block_id == kept), None)
        block = block or min(healthy, key=lambda one: one.load)
        self._remember(session_id, block)
        return block

    def _remember(self, session_id: str, block: Block) -> None:
        self._sessions[session_id] = block.block_id
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)


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
