"""Whoever holds a client's connection, in front of a CarryingService."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry

from tests.web.carrying_service import CarryingService
from web.answer import Answer
from web.carry import Carrier
from web.upstream import Upstream

PATH = "/v1/chat/completions"
DEADLINE_S = 60.0
KINDS = ["stream", "lines", "whole"]


class Client:
    """Whoever holds the client's connection, in front of one service."""

    def __init__(self, service: CarryingService, deadline_s: float = DEADLINE_S) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self._carrier = Carrier(self.registry)
        self._upstream = Upstream("the service", service.url, deadline_s=deadline_s)

    async def ask(self, kind: str, **document: Any) -> bytes:
        """What is passed on of a "stream", its "lines" too, or "whole"."""
        answer = await self.answer(kind, **document)
        if answer.events is None:
            if answer.status != 200:
                raise Refused(answer.status, answer.document())
            return answer.content
        return b"".join([piece async for piece in answer.events])

    async def answer(self, kind: str, **document: Any) -> Answer:
        """Before it is read."""
        document = {"stream": kind != "whole", "model": "m", **document}
        return await self._carrier.ask(self._upstream, PATH, document, passes_lines=kind == "lines")

    def count(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("request_carries_total", {"outcome": outcome})

    async def close(self) -> None:
        await self._upstream.close()


class Refused(Exception):
    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(status, document)
        self.status, self.document = status, document


def with_client(
    work: Callable[[Client], Awaitable[None]], deadline_s: float = DEADLINE_S, **service: Any
) -> None:
    async def run() -> None:
        async with CarryingService(**service) as small:
            client = Client(small, deadline_s)
            try:
                await work(client)
            finally:
                await client.close()

    asyncio.run(run())
