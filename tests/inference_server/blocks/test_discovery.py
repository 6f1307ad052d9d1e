"""List and watch against a server that speaks the Kubernetes protocol and forgets old versions.

tests/cluster/test_discovery.py has the real API server, which forgets only after minutes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from kubernetes_asyncio import client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from inference_server.blocks.discovery import Followed
from tests.waiting import free_ports

GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


class Server:
    """One more Service at each list; watches of versions below `oldest` are gone."""

    def __init__(self) -> None:
        self.lists = 0
        self.oldest = 0
        self.watched: list[str] = []
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def services(self, request: Request) -> Response:
        if "watch" not in request.query_params:
            self.lists += 1
            items = [self.service(f"listed-{number}") for number in range(self.lists)]
            version = str(self.lists * 100)
            return JSONResponse({"metadata": {"resourceVersion": version}, "items": items})
        version = request.query_params["resourceVersion"]
        self.watched.append(version)
        return StreamingResponse(self.lines(int(version)))

    async def lines(self, version: int) -> Any:
        if version < self.oldest:
            yield json.dumps({"type": "ERROR", "object": GONE}) + "\n"
            return
        while event := await self.events.get():
            yield json.dumps(event) + "\n"

    def service(self, name: str, version: str = "1") -> dict[str, Any]:
        return {"metadata": {"name": name, "resourceVersion": version}}


def test_a_watch_goes_on_where_it_was_and_lists_again_when_that_is_gone() -> None:
    async def run() -> Server:
        server, [port] = Server(), free_ports(1)
        path = "/api/v1/namespaces/blocks/services"
        application = Starlette(routes=[Route(path, server.services)])
        config = uvicorn.Config(
            application, port=port, log_level="critical", timeout_graceful_shutdown=0
        )
        serving = uvicorn.Server(config)
        tasks = [asyncio.create_task(serving.serve())]
        while not serving.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port}")) as api:
            changes: asyncio.Queue[list[str]] = asyncio.Queue()
            followed = Followed(
                client.CoreV1Api(api).list_namespaced_service,
                "blocks",
                "a=b",
                lambda: changes.put_nowait(sorted(followed.objects)),
            )
            tasks.append(asyncio.create_task(followed.run()))
            try:
                async with asyncio.timeout(60):
                    assert await changes.get() == ["listed-0"]
                    await server.events.put(
                        {"type": "ADDED", "object": server.service("added", "101")}
                    )
                    assert await changes.get() == ["added", "listed-0"]
                    await server.events.put(
                        {"type": "BOOKMARK", "object": server.service("", "150")}
                    )
                    await server.events.put({})  # the server ends the watch
                    await server.events.put(
                        {"type": "DELETED", "object": server.service("listed-0", "151")}
                    )
                    assert await changes.get() == ["added"]
                    assert server.watched == ["100", "150"]
                    server.oldest = 200
                    await server.events.put({})
                    assert await changes.get() == ["listed-0", "listed-1"]
                    assert server.watched[2] == "151"
                    assert not followed.failure
            finally:
                tasks[1].cancel()
                serving.should_exit = True
                await asyncio.gather(*tasks, return_exceptions=True)
        return server

    assert asyncio.run(run()).lists == 2
