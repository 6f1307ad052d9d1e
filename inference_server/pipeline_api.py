"""GET /v1/events?model=BLOCK: a block's pipeline as server-sent events."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inference_server.blocks.block import Block
from inference_server.pipeline_feed import PipelineFeed
from inference_server.server import InferenceServer
from web.errors import ApiError
from web.events import EventStream


class PipelineApi:
    """Keeps one feed a block, which goes with it."""

    def __init__(self, server: InferenceServer) -> None:
        self._server = server
        self._feeds: WeakKeyDictionary[Block, PipelineFeed] = WeakKeyDictionary()

    async def events(self, request: Request) -> Response:
        """Raises ApiError: 400 without a name, 404 for an unknown one."""
        name = request.query_params.get("model", "")
        if not name:
            message = "model: must be a block's id, as in /v1/events?model=BLOCK"
            raise ApiError(400, message, param="model", code="invalid_value", value=name)
        block = await self._server.table.by_model(name)
        feed = self._feeds.setdefault(block, PipelineFeed(block))
        return EventStream(feed.watch())

    def routes(self) -> list[Route]:
        return [Route("/v1/events", self.events)]
