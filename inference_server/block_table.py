"""The blocks that this server knows, and which of them a request means."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from service.contract import BlockSpec, InferenceServerSpec
from service.error_body import ApiError, shown_value
from service.upstream import Upstream


class Block:
    """One row: the block's spec, its connection, and the names its models go by once asked."""

    def __init__(self, spec: BlockSpec, deadline_s: float) -> None:
        self.spec = spec
        self.upstream = Upstream(f"block {spec.block_id}", spec.url, deadline_s=deadline_s)
        self._names: frozenset[str] | None = None

    async def model_names(self) -> frozenset[str]:
        """What the block's /v1/models lists; asked until it answers once. Empty until then."""
        if self._names is None:
            with suppress(ApiError, KeyError, TypeError):
                models = await self.upstream.get("/v1/models")
                self._names = frozenset(str(entry["id"]) for entry in models["data"])
        return self._names or frozenset()


class BlockTable:
    """The static table of the spec. Discovery fills the same table later."""

    def __init__(self, spec: InferenceServerSpec) -> None:
        self._blocks = {row.block_id: Block(row, spec.request_deadline_s) for row in spec.blocks}

    async def close(self) -> None:
        await asyncio.gather(*(block.upstream.close() for block in self._blocks.values()))

    def blocks(self) -> list[Block]:
        return list(self._blocks.values())

    def by_id(self, block_id: str) -> Block:
        """Raises ApiError 404 that lists the known blocks."""
        if block := self._blocks.get(block_id):
            return block
        raise self._unknown(block_id)

    async def by_model(self, name: str) -> Block:
        """A block by its id, its model's name or its deployment's; raises ApiError 404."""
        if block := self._blocks.get(name):
            return block
        names = await asyncio.gather(*(block.model_names() for block in self.blocks()))
        for block, known in zip(self.blocks(), names, strict=True):
            if name in known:
                return block
        raise self._unknown(name)

    async def not_ready(self) -> str:
        """ "" when some block serves, else why none does."""
        reasons = await asyncio.gather(*(block.upstream.ready() for block in self.blocks()))
        if not reasons:
            return "the block table is empty"
        return "" if "" in reasons else "; ".join(reasons)

    def _unknown(self, name: str) -> ApiError:
        known = ", ".join(self._blocks) or "none"
        message = f"model = {shown_value(name)}: no such block; known blocks: {known}"
        return ApiError(404, message, param="model", code="model_not_found", value=name)
