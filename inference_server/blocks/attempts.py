"""How a request is put to blocks: to one replica after the other, as web.carry asks again.

Of several blocks the first has the request; the next one that serves gets it where nobody has taken
it yet. What a block has begun stays with it: another one's model would not go on with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from inference_server.blocks.block import Block
from inference_server.blocks.replica import Replica
from web.answer import Answer, UpstreamError
from web.errors import ApiError
from web.upstream import READY_POLL_S


class Attempts:
    """A web.carry.Service, of one request. Holds a place of the replica that answers, the last one
    asked, until `release`; `url` is that replica's, `block` the one that it is of.

    `aliased`: no block knows the model's name that the client used. The first block has
    `patience_s` to come back before the next one is asked.
    """

    def __init__(
        self, blocks: Sequence[Block], affinity: str, *, aliased: bool, patience_s: float
    ) -> None:
        self.block, self._affinity, self._aliased = blocks[0], affinity, aliased
        self._patience_s = patience_s
        # Who may still get it, the ones after `block` first.
        self._blocks = list(blocks)
        self.deadline_s = self.block.deadline_s
        self._taken = False
        self._tried: set[Replica] = set()
        self._replica: Replica | None = None
        self.url = ""

    @property
    def name(self) -> str:
        return f"block {self.block.block_id}"

    @property
    def who(self) -> str:
        return f"{self.name} at {self.url}"

    async def ask(
        self, path: str, document: dict[str, Any], headers: Mapping[str, str], deadline: float
    ) -> Answer:
        """POST to the least loaded replica, if possible one that has not been tried."""
        self.release()
        replica = self.block.choose(self._affinity, self._tried)
        self._tried.add(replica)
        replica.take()
        self._replica, self.url = replica, replica.url
        if self._aliased and "model" in document:
            document = document | {"model": self.block.block_id}
        try:
            answer = await replica.upstream.ask(path, document, headers, deadline)
        except UpstreamError as error:
            self._taken = self._taken or error.at_work
            raise
        self._taken = self._taken or answer.events is not None
        return answer

    async def returned(self) -> None:
        """At once while there is another replica, else when some replica serves, of another block
        too while nobody has taken the request.

        Raises ApiError 503 where the block is no more.
        """
        if self._replica is not None:
            self._replica.failed()
        self.release()
        if any(one not in self._tried for one in self.block.replicas):
            return
        if self._taken:
            self._blocks = [self.block]
        at = self._blocks.index(self.block) + 1
        self._blocks = self._blocks[at:] + self._blocks[:at]
        self.block = await self._first_that_serves()
        self._tried.clear()

    async def _first_that_serves(self) -> Block:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            for block in [self.block] if loop.time() < until else self._blocks:
                if not await block.not_ready(READY_POLL_S):
                    return block
            if loop.time() >= until:
                self._patience_s = 0
            if all(block.gone for block in self._blocks):
                message = f"{self.name} is no longer among the blocks"
                raise ApiError(503, message, code="no_replica", headers={"Retry-After": "1"})
            await asyncio.sleep(READY_POLL_S)

    def release(self) -> None:
        if self._replica is not None:
            self._replica.release()
            self._replica = None
