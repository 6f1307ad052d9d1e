"""How a request is put to a block: to one replica after the other, as web.carry asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from inference_server.blocks.block import Block
from inference_server.blocks.replica import Replica
from web.answer import Answer
from web.errors import ApiError
from web.upstream import READY_POLL_S


class Attempts:
    """A web.carry.Service, of one request. Holds a place of the replica that answers, the last one
    asked, until `release`; `url` is that replica's."""

    def __init__(self, block: Block, affinity: str) -> None:
        self._block, self._affinity = block, affinity
        self.deadline_s = block.deadline_s
        self.name = f"block {block.block_id}"
        self._tried: set[Replica] = set()
        self._replica: Replica | None = None
        self.url = ""

    @property
    def who(self) -> str:
        return f"{self.name} at {self.url}"

    async def ask(
        self, path: str, document: dict[str, Any], headers: Mapping[str, str], deadline: float
    ) -> Answer:
        """POST to the least loaded replica, if possible one that has not been tried."""
        self.release()
        replica = self._block.choose(self._affinity, self._tried)
        self._tried.add(replica)
        replica.take()
        self._replica, self.url = replica, replica.url
        return await replica.upstream.ask(path, document, headers, deadline)

    async def returned(self) -> None:
        """At once while there is another replica, else when some replica serves.

        Raises ApiError 503 where the block is no more.
        """
        if self._replica is not None:
            self._replica.failed()
        self.release()
        if any(one not in self._tried for one in self._block.replicas):
            return
        while await self._block.not_ready(READY_POLL_S):
            if self._block.gone:
                message = f"{self.name} is no longer among the blocks"
                raise ApiError(503, message, code="no_replica", headers={"Retry-After": "1"})
            await asyncio.sleep(READY_POLL_S)
        self._tried.clear()

    def release(self) -> None:
        if self._replica is not None:
            self._replica.release()
            self._replica = None
