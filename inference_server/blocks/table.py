"""The blocks that this server knows, and which of them a request means."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from contract.faults import shown_value
from contract.specs import BlockSpec
from inference_server.blocks.block import Block, known_ids
from web.errors import ApiError


class BlockTable:
    """Block id -> block. Filled once from the spec, or kept in step by discovery."""

    def __init__(self, rows: Iterable[BlockSpec], deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._blocks: dict[str, Block] = {}
        self._gone: set[asyncio.Task[None]] = set()
        self.replace(rows)

    def replace(self, rows: Iterable[BlockSpec]) -> None:
        """Take the rows as the whole truth; blocks that stay keep their connections."""
        before, self._blocks = self._blocks, {}
        for row in rows:
            block = before.pop(row.block_id, None)
            if block is None:
                block = Block(row, self._deadline_s)
            else:
                block.update(row)
            self._blocks[row.block_id] = block
        for block in before.values():
            self._let_go(block)

    async def close(self) -> None:
        for task in self._gone:
            task.cancel()
        await asyncio.gather(*(block.close() for block in self._blocks.values()))

    def blocks(self) -> list[Block]:
        return list(self._blocks.values())

    def get(self, block_id: str) -> Block | None:
        return self._blocks.get(block_id)

    def by_id(self, block_id: str) -> Block:
        """Raises ApiError 404 that lists the known blocks."""
        if block := self._blocks.get(block_id):
            return block
        raise self._unknown(block_id)

    async def by_model(self, name: str) -> Block:
        """A block by its id, its model's name or its deployment's.

        Raises ApiError: 404, 503 while a block has not told the names of its model yet.
        """
        if block := self._blocks.get(name):
            return block
        blocks = self.blocks()
        names = await asyncio.gather(*(block.model_names() for block in blocks))
        for block, known in zip(blocks, names, strict=True):
            if name in (known or ()):
                return block
        silent = [block for block, known in zip(blocks, names, strict=True) if known is None]
        if silent:
            who = known_ids(silent)
            message = f"model = {shown_value(name)}: may be of {who}, which does not answer"
            headers = {"Retry-After": "1"}
            raise ApiError(503, message, param="model", code="block_not_ready", headers=headers)
        raise self._unknown(name)

    async def not_ready(self) -> str:
        """ "" when some block serves, else why none does."""
        reasons = await asyncio.gather(*(block.not_ready() for block in self.blocks()))
        if not reasons:
            return "the block table is empty"
        return "" if "" in reasons else "; ".join(reasons)

    def _unknown(self, name: str) -> ApiError:
        known = known_ids(self._blocks.values())
        message = f"model = {shown_value(name)}: no such block; known blocks: {known}"
        return ApiError(404, message, param="model", code="model_not_found", value=name)

    def _let_go(self, block: Block) -> None:
        """A block that is no more finishes what it has begun."""
        block.gone = True
        task = asyncio.create_task(_finish(block))
        self._gone.add(task)
        task.add_done_callback(self._gone.discard)


async def _finish(block: Block) -> None:
    await asyncio.gather(*(replica.retire() for replica in block.replicas))
