"""A small OpenAI-compatible server in a thread, with the failures that a real one has.

What it does is in the last user message: "hang" never answers, "stream then hang" stops after two
pieces, "flood" sends without end, "refuse" is a 400, "die" breaks the connection off, "die in the
middle" after two pieces. A stream is silent for SILENT_S, or while it is `held`, before its first
piece with "be late", in the middle with "pause", before it fails with "fail late", before it breaks
off, once, with "die late"; "comment" first sends a comment every tenth of a second. "think" is
answered with reasoning, twice as long as the reply. "slow" takes SLOW_S, or while it is `held`.
Anything else is answered with the number of messages and the message.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.waiting import free_ports, wait_for

MODEL = "demo:model"
DEPLOYMENT = "demo-1"
SILENT_S, SLOW_S = 1.5, 0.3
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


class SmallUpstream:
    """Records every request's body and headers, and when a client left."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.in_flight = 0
        self.held: bool | None = None
        self.reset()

    def reset(self) -> None:
        """As if nothing had been asked; first what still is being answered comes to its end."""
        self.held = None
        wait_for(lambda: self.in_flight == 0, what="nothing is being answered")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Headers] = []
        self.left_at: list[float] = []
        self.reason = ""
        self.deaths = 0
        self.too_many_messages = 1000
        self.model = MODEL
        self.max_model_len: int | None = None
        self.merges_system = self.keeps_reasoning = False
        self.has_chat_template = True
        self.most_in_flight = 0

    def __enter__(self) -> SmallUpstream:
        routes = [
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/completions", self._answer, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/readyz", self._readyz),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            host="127.0.0.1",
            port=self.port,
            log_level="critical",
            timeout_graceful_shutdown=0,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)

    async def _models(self, _: Request) -> Response:
        limit = {"max_model_len": self.max_model_len} if self.max_model_len else {}
        limit |= {"merges_system_messages": True} if self.merges_system else {}
        limit |= {"keeps_reasoning": True} if self.keeps_reasoning else {}
        entries = [{"id": name, "object": "model", **limit} for name in (self.model, DEPLOYMENT)]
        return JSONResponse({"object": "list", "data": entries})

    async def _readyz(self, _: Request) -> Response:
        body = {"ready": not self.reason, "reason": self.reason}
        return JSONResponse(body, 503 if self.reason else 200)

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(request.headers)
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._answer_text(request, body)
        finally:
            self.in_flight -= 1

    async def _answer_text(self, request: Request, body: dict[str, Any]) -> Response:
        messages = body.get("messages", [])
        text = messages[-1]["content"] if messages else body["prompt"]
        if self.reason:
            error = {"message": self.reason, "type": "service_unavailable_error"}
            return JSONResponse({"error": error}, 503)
        if messages and not self.has_chat_template:
            error = {"message": "a base model", "param": "messages", "code": "no_chat_template"}
            return JSONResponse({"error": error}, 400)
        if (
            text == "refuse"
            or len(messages) > self.too_many_messages
            or (text == "long" and "max_tokens" in body)
        ):
            code = "refused" if text == "refuse" else "context_length_exceeded"
            error = {"message": f"told to: {code}", "type": "invalid_request_error", "code": code}
            return JSONResponse({"error": error}, 400)
        if text == "die" or (text == "die once" and self.deaths == 0):
            self.deaths += 1
            return _BrokenOff()
        if text == "slow":
            await self._silence(SLOW_S)
        if text == "hang":
            await self._until_left(request)
        if body.get("stream"):
            pieces = self._pieces(request, text)
            return StreamingResponse(pieces, media_type="text/event-stream")
        reply = f"{len(messages)} messages: {text}"
        message = {"role": "assistant", "content": reply}
        if text == "think":
            message["reasoning_content"] = 2 * reply
        choice = {"index": 0, "message": message, "text": reply}
        return JSONResponse({"model": body["model"], "choices": [choice], "usage": USAGE})

    async def _pieces(self, request: Request, text: str) -> AsyncIterator[str]:
        if text in ("be late", "fail late", "die late"):
            await self._silence()
        if text == "comment":
            for number in range(10):
                yield f": comment {number}\n\n"
                await asyncio.sleep(0.1)
        if text == "fail late":
            error = {"message": "gone", "type": "service_unavailable_error", "code": "not_serving"}
            yield f"data: {json.dumps({'error': error})}\n\n"
            return
        if text == "die late" and self.deaths == 0:
            self.deaths += 1
            raise ConnectionResetError
        yield _event({"role": "assistant", "content": ""})
        if text == "die in the role" and self.deaths == 0:
            self.deaths += 1
            raise ConnectionResetError
        try:
            while text == "flood":
                yield _event({"content": "x" * 100_000})
                await asyncio.sleep(0)
        finally:
            if text == "flood":
                self.left_at.append(time.monotonic())
        for number in range(5):
            if number == 2 and text == "die in the middle":
                raise ConnectionResetError
            if number == 2 and text == "stream then hang":
                try:
                    await asyncio.sleep(60)
                finally:
                    self.left_at.append(time.monotonic())
            await (self._silence() if number == 2 and text == "pause" else asyncio.sleep(0.05))
            yield _event({"content": f"piece {number} "})
        yield "data: [DONE]\n\n"

    async def _silence(self, seconds: float = SILENT_S) -> None:
        if self.held is None:
            await asyncio.sleep(seconds)
        while self.held:  # noqa: ASYNC110 (of a test in another thread)
            await asyncio.sleep(0.01)

    async def _until_left(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left_at.append(time.monotonic())


class _BrokenOff(Response):
    """Promises more than it sends, so that the server closes the connection."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        raise ConnectionResetError


def _event(delta: dict[str, str]) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
