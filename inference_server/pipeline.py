"""GET /v1/events?model=BLOCK: a block's pipeline as it changes.

The block is asked once, however many watch.
"""

from __future__ import annotations

import asyncio
import json
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inference_server.blocks.block import Block
from inference_server.server import InferenceServer
from web.errors import ApiError, invalid_field
from web.events import ADMITTED, Events, EventStream, event

TOPOLOGY_EVENTS = "/topology/events"
AGAIN_S = 2.0
_DATA = b"data:"


class PipelineFeed:
    """Connected to the block while somebody watches.

    Watchers are told the newest state: one that reads slowly misses those between.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._newest: bytes | None = None
        self._over = False
        self._changed = asyncio.Event()

    async def watch(self) -> Events:
        """Events {"block_id", "topology"}, or {"block_id", "reason"} while there is none.

        Ends when the block is gone.
        """
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        told: bytes | None = None
        try:
            yield ADMITTED
            while True:
                if self._newest is not None and self._newest is not told:
                    told = self._newest
                    yield told
                elif self._over:
                    return
                else:
                    await self._changed.wait()
        finally:
            self._watchers -= 1
            if not self._watchers and self._task is not None:
                self._task.cancel()
                self._task, self._newest = None, None

    async def _follow(self) -> None:
        """Stay connected; what is said when that fails is why."""
        while not self._block.gone:
            reason = f"block {self._block.block_id} has no replica that is ready"
            for replica in self._block.replicas:
                reason = f"{replica.upstream.name} stopped telling about its pipeline"
                try:
                    async for events in replica.upstream.live_events(TOPOLOGY_EVENTS):
                        self._tell_topology(events)
                except ApiError as error:
                    reason = str(error)
            self._tell_reason(reason)
            await asyncio.sleep(AGAIN_S)
        self._over = True
        self._tell_reason(f"block {self._block.block_id} is gone")

    def _tell_topology(self, events: bytes) -> None:
        """The last of some whole events; comments, and what is no JSON object, are passed over."""
        told = [one for one in events.split(b"\n\n") if one.startswith(_DATA)]
        if not told:
            return
        try:
            topology = json.loads(told[-1].removeprefix(_DATA))
        except ValueError:
            return
        if isinstance(topology, dict):
            self._tell({"block_id": self._block.block_id, "topology": topology})

    def _tell_reason(self, reason: str) -> None:
        self._tell({"block_id": self._block.block_id, "reason": reason})

    def _tell(self, document: dict[str, object]) -> None:
        self._newest = event(document)
        self._changed.set()
        self._changed = asyncio.Event()


class PipelineApi:
    """Keeps one feed a block, which goes with it."""

    def __init__(self, server: InferenceServer) -> None:
        self._server = server
        self._feeds: WeakKeyDictionary[Block, PipelineFeed] = WeakKeyDictionary()

    async def events(self, request: Request) -> Response:
        """Of an alias the pipeline of its first block that serves.

        Raises ApiError: 400 without a name, 404 for an unknown one.
        """
        name = request.query_params.get("model", "")
        if not name:
            rule = "must be a block's id, as in /v1/events?model=BLOCK"
            raise invalid_field("model", rule, name)
        alias = self._server.aliases.get(name)
        block = await (alias.first() if alias else self._server.table.by_model(name))
        feed = self._feeds.setdefault(block, PipelineFeed(block))
        return EventStream(feed.watch())

    def routes(self) -> list[Route]:
        return [Route("/v1/events", self.events)]
