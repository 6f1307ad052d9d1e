"""How a request is put to a block: to one replica after the other, until one delivers something."""

from __future__ import annotations

from functools import partial
from typing import Any

from inference_server.blocks.block import Block
from inference_server.blocks.replica import Replica
from web.answer import Answer, UpstreamError, or_another

DRAINING = "draining"
# A URL may stand for several instances (a Service): the second attempt may reach another one.
MIN_ATTEMPTS = 2


class Attempts:
    """Of one request. Holds a place of the replica that answers, the last one asked, until
    `release`; `url` is that replica's."""

    def __init__(self, block: Block, affinity: str) -> None:
        self._block, self._affinity = block, affinity
        self._tried: set[Replica] = set()
        self._left = max(MIN_ATTEMPTS, len(block.replicas))
        self._replica: Replica | None = None
        self.url = ""

    async def ask(self, path: str, document: dict[str, Any]) -> Answer:
        """POST to the least loaded replica.

        One that dies before it delivered anything, or is draining, is passed over for the next,
        also when the headers of a stream have been passed on. Raises ApiError.
        """
        while True:
            replica = self._take()
            try:
                answer = await replica.upstream.ask(path, document)
            except UpstreamError:
                replica.failed()
                if not self._left:
                    raise
                continue
            if not self._left:
                return answer
            if not _is_draining(answer):
                again = partial(self._again, path, document)
                return or_another(answer, again, f"block {self._block.block_id}")
            replica.failed()

    def failed(self) -> None:
        """The replica that answers broke off."""
        if self._replica is not None:
            self._replica.failed()

    def release(self) -> None:
        if self._replica is not None:
            self._replica.release()
            self._replica = None

    async def _again(
        self, path: str, document: dict[str, Any], _broke_off: UpstreamError
    ) -> Answer:
        self.failed()
        return await self.ask(path, document)

    def _take(self) -> Replica:
        self.release()
        self._left -= 1
        replica = self._block.choose(self._affinity, self._tried)
        self._tried.add(replica)
        replica.take()
        self._replica, self.url = replica, replica.url
        return replica


def _is_draining(answer: Answer) -> bool:
    return answer.status == 503 and answer.error.get("code") == DRAINING
