"""GET /v1/blocks: every block as it is."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference_server.blocks.block import Block
from inference_server.server import InferenceServer


class BlocksApi:
    def __init__(self, server: InferenceServer) -> None:
        self._server = server

    async def blocks(self, _request: Request) -> Response:
        """Every block with component, labels, tags, health and load.

        `load.in_flight` are the requests of this process; `replicas` has one item per instance.
        """
        found = await asyncio.gather(*(_describe(block) for block in self._server.table.blocks()))
        return JSONResponse({"object": "list", "data": found})

    def routes(self) -> list[Route]:
        return [Route("/v1/blocks", self.blocks)]


async def _describe(block: Block) -> dict[str, Any]:
    reasons = await asyncio.gather(*(one.not_ready() for one in block.replicas))
    component = await block.component()
    replicas = [
        {"url": one.url, "healthy": not why, "reason": why, "in_flight": one.in_flight}
        for one, why in zip(block.replicas, reasons, strict=True)
    ]
    return {
        "id": block.block_id,
        "object": "block",
        "component": block.spec.component,
        "labels": block.spec.labels,
        "tags": component.get("tags", []),
        "merges_system_messages": (await block.model()).get("merges_system_messages") is True,
        "healthy": "" in reasons,
        "reason": "" if "" in reasons else await block.not_ready(),
        "load": {
            "in_flight": sum(one.in_flight for one in block.replicas),
            "replicas": len(replicas),
        },
        "replicas": replicas,
    }
