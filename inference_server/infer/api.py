"""POST /v1/infer: one block, a chosen block, or a graph of blocks."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inference_server.blocks.aliases import Choice
from inference_server.blocks.block import Block
from inference_server.exchange import OK
from inference_server.infer.graph import Data, Graph, NodeFailed, parse_graph, run_graph
from inference_server.infer.query import parse_selection_query
from inference_server.infer.request import InferRequest, parse_infer_request
from inference_server.infer.selection import Selection
from inference_server.infer.session_blocks import SessionBlocks
from inference_server.server import InferenceServer
from web import deadline
from web.body import read_json_object
from web.disconnect import until_disconnected
from web.errors import ApiError

INFER_PATH = "/v1/infer"


class InferApi:
    def __init__(self, server: InferenceServer) -> None:
        self._server = server
        self._sessions = SessionBlocks()
        self._selection = Selection(self._sessions)

    async def infer(self, request: Request) -> Response:
        """{model, session_id, seq_no, ts, data}; a block's refusal comes as the block says it."""
        document = await read_json_object(request, self._server.spec.max_body_bytes)
        asked = parse_infer_request(document)
        model, data = await until_disconnected(request.receive, self._in_time(request, asked))
        return JSONResponse(
            {
                "model": model,
                "session_id": asked.session_id,
                "seq_no": asked.seq_no,
                "ts": time.time(),
                "data": data,
            }
        )

    def routes(self) -> list[Route]:
        return [Route(INFER_PATH, self.infer, methods=["POST"])]

    async def _in_time(self, request: Request, asked: InferRequest) -> tuple[str, Data]:
        limit_s = self._server.spec.request_deadline_s
        try:
            async with asyncio.timeout(deadline.remaining_s(limit_s)) as request.state.limit:
                return await self._answer(request, asked)
        except TimeoutError as error:
            message = f"not finished within {deadline.allowed_s(limit_s):g} s, the request deadline"
            raise ApiError(504, message, code="deadline_exceeded") from error

    async def _answer(self, request: Request, asked: InferRequest) -> tuple[str, Data]:
        """The id of the block that answered, of a graph its entry's, and the answer's data.

        Raises ApiError.
        """
        table, aliases = self._server.table, self._server.aliases
        query = parse_selection_query(asked.selection_query or {})
        model = asked.model
        if query is not None:
            # With a model too, that block must match.
            among = self._named(model) if model else table.blocks()
            session_id = request.state.caller.session_id(asked.session_id)
            block = await self._selection.choose(query, session_id, among)
            model = block.block_id
        known = [*aliases.names, *(block.block_id for block in table.blocks())]
        graph = parse_graph(asked.graph, model, known)
        if graph is None:
            return await self._ask(request, asked, model, asked.data)
        return model, await self._run(request, asked, graph)

    async def _run(self, request: Request, asked: InferRequest, graph: Graph) -> Data:
        async def ask(node: str, data: Data) -> Data:
            return (await self._ask(request, asked, node, data))[1]

        try:
            return await run_graph(graph, asked.data, ask)
        except NodeFailed as failure:
            raise _named(failure) from failure

    def _named(self, name: str) -> list[Block]:
        alias = self._server.aliases.get(name)
        return alias.blocks() if alias else [self._server.table.by_id(name)]

    async def _choose(self, name: str, session_id: str) -> Choice:
        """A session of an alias stays with the block that holds it, while that is up."""
        alias = self._server.aliases.get(name)
        if alias is None:
            return Choice([self._server.table.by_id(name)])
        kept = self._sessions.get(name, session_id)
        return await alias.for_session(session_id, kept)

    async def _ask(
        self, request: Request, asked: InferRequest, name: str, data: Data
    ) -> tuple[str, Data]:
        """The id of the block that answered, and what."""
        session_id = request.state.caller.session_id(asked.session_id)
        choice = await self._choose(name, session_id)
        exchange = self._server.exchange(
            request, choice, session_id=asked.session_id, seq_no=asked.seq_no
        )
        keeps_text = self._server.spec.log_texts
        if keeps_text:
            exchange.row.question = json.dumps(data, ensure_ascii=False)
        question = {"session_id": session_id, "seq_no": asked.seq_no, "data": data}
        try:
            answer = await exchange.ask("/infer", question, session_id)
            if answer.status != 200:
                raise answer.refusal(f"block {exchange.block.block_id}")
            found = answer.document().get("data")
            if not isinstance(found, dict | list):
                raise ApiError(502, f"block {exchange.block.block_id} answered without data")
        except BaseException as error:
            if request.state.limit.expired():
                exchange.too_late()
            else:
                exchange.failed(error)
            raise
        exchange.count_usage(*_usages(found))
        if keeps_text:
            exchange.row.answer = json.dumps(found, ensure_ascii=False)
        exchange.finish(OK)
        if choice.aliased:
            self._sessions.remember(name, session_id, exchange.block.block_id)
        return exchange.block.block_id, found


def _usages(data: Any) -> list[Any]:
    """Of an answer, or of each answer of a batch and the batches in it."""
    if isinstance(data, list):
        return [usage for item in data for usage in _usages(item)]
    return [data.get("usage")] if isinstance(data, dict) else []


def _named(failure: NodeFailed) -> ApiError:
    """The node's error, with the node's name before it."""
    inner: dict[str, Any] = failure.error.body["error"]
    param = ".".join(filter(None, ("graph", failure.node, inner.get("param"))))
    message = f"graph: block {failure.node} failed: {inner['message']}"
    error = ApiError(failure.error.status, message, param=param, headers=failure.error.headers)
    error.body["error"]["code"] = inner.get("code")
    return error
