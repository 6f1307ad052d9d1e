"""OpenAI's endpoints, passed to the block that `model` names.

What a passing event stream costs is read without holding it up.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contract.carry import FIELD
from contract.models import model_title
from inference_server.blocks.aliases import Alias
from inference_server.blocks.block import Block
from inference_server.exchange import CANCELLED, FAILED, OK, Exchange
from inference_server.server import InferenceServer
from web.answer import Answer
from web.body import read_json_object
from web.disconnect import until_disconnected
from web.errors import ApiError, invalid_field
from web.events import ADMITTED, Events

OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions")
MODEL_RULE = "must be a string that names a block, its model or an alias"
BROKE_OFF = "stream_broke_off"
_DATA = b"data: "
_END = b"\n\n"
# In a document this is the key: inside of a string its quotes would be escaped.
_USAGE_KEY = b'"prompt_tokens"'
# At the start of a line each: a comment, or a text in a document, may have them too.
_EVENT = b"\ndata: "
_DONE = b"\ndata: [DONE]"
_ERROR = b'\ndata: {"error"'


class OpenAIApi:
    def __init__(self, server: InferenceServer) -> None:
        self._server = server

    async def generate(self, request: Request) -> Response:
        """A completion, streamed or whole; the block's own errors pass as they are."""
        document = await read_json_object(request, self._server.spec.max_body_bytes)
        name = document.get("model")
        if not isinstance(name, str) or not name:
            raise invalid_field("model", MODEL_RULE, name)
        if FIELD in document:
            # Between the tiers alone: whoever held the connection says what was delivered.
            raise invalid_field(FIELD, "is not a field of this request", document[FIELD])
        affinity = _affinity(document)
        choice = await self._server.choose(name, affinity)
        exchange = self._server.exchange(request, choice, user=_user(document))
        if self._server.spec.log_texts:
            asked = {key: document[key] for key in ("messages", "prompt") if key in document}
            exchange.row.question = json.dumps(asked, ensure_ascii=False)
        try:
            work = exchange.ask(request.url.path, with_usage(document), affinity)
            answer = await until_disconnected(request.receive, work)
        except BaseException as error:
            exchange.failed(error)
            raise
        if answer.events is not None:
            meter = StreamMeter(
                pass_usage=asks_usage(document), keep_text=self._server.spec.log_texts
            )
            answer.events = _metered(answer.events, exchange, meter)
            return answer.response(partial(_finish_stream, exchange, meter))
        self._finish(exchange, answer)
        return answer.response()

    async def models(self, _request: Request) -> Response:
        """The aliases, then the blocks, each under its id: what `model` may be."""
        aliases = self._server.aliases
        blocks = [block for block in self._server.table.blocks() if not aliases.get(block.block_id)]
        entries = await asyncio.gather(
            *(self._aliased(alias) for alias in aliases), *(self._model(block) for block in blocks)
        )
        return JSONResponse({"object": "list", "data": entries})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if alias := self._server.aliases.get(name):
            return JSONResponse(await self._aliased(alias))
        return JSONResponse(await self._model(await self._server.table.by_model(name)))

    def routes(self) -> list[Route]:
        return [
            *(Route(path, self.generate, methods=["POST"]) for path in OPENAI_PATHS),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
        ]

    async def _model(self, block: Block) -> dict[str, Any]:
        """With the model behind the block: its name, its title for people, what a request that
        does not say gets."""
        model, component = await block.model(), await block.component()
        name = model.get("root") or model.get("id")
        return self._entry(block.block_id, _whole(model.get("max_model_len"))) | {
            "names": sorted(await block.model_names() or ()),
            "root": name,
            "title": model_title(str(name)) if name else None,
            "generation_config": _object(model.get("generation_config"))
            | _object(_object(component.get("componentParameters")).get("generation_config")),
        }

    async def _aliased(self, alias: Alias) -> dict[str, Any]:
        """As long as a request may be that any of its blocks may get."""
        models = await asyncio.gather(*(block.model() for block in alias.blocks()))
        lengths = [_whole(model.get("max_model_len")) for model in models]
        length = min((one for one in lengths if one is not None), default=None)
        return self._entry(alias.name, length) | {"names": [], "blocks": list(alias.weights)}

    def _entry(self, name: str, max_model_len: int | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._server.started,
            "owned_by": self._server.spec.deployment_name,
            "max_model_len": max_model_len,
        }

    def _finish(self, exchange: Exchange, answer: Answer) -> None:
        if answer.status != 200:
            exchange.finish(FAILED, str(answer.error.get("code")) if answer.error else None)
            return
        try:
            document = answer.document()
        except ApiError:
            document = {}
        exchange.count_usage(document.get("usage"))
        if self._server.spec.log_texts:
            exchange.row.answer = json.dumps(document.get("choices"), ensure_ascii=False)
        exchange.finish(OK)


async def _metered(events: Events, exchange: Exchange, meter: StreamMeter) -> Events:
    yield ADMITTED
    async for piece in events:
        kept = meter.push(piece)
        if meter.begun:
            exchange.answer_began()
        if kept:
            yield kept


def _finish_stream(exchange: Exchange, meter: StreamMeter, error: Exception | None) -> None:
    exchange.count(meter.prompt_tokens, meter.completion_tokens)
    exchange.row.answer = meter.text
    if isinstance(error, TimeoutError):
        exchange.too_late()
    elif meter.done:
        exchange.finish(OK)
    elif isinstance(error, ApiError) or meter.error is not None:
        body = meter.error or (error.body if isinstance(error, ApiError) else {})
        exchange.finish(FAILED, BROKE_OFF if meter.begun else _code(body))
    else:
        exchange.finish(CANCELLED)


def _code(body: dict[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("code") or "") if isinstance(error, dict) else ""


def _user(document: dict[str, Any]) -> str | None:
    """OpenAI's `user` and its newer name, kept in the request log: whom an abuse goes back to."""
    for name in ("safety_identifier", "user"):
        value = document.get(name)
        if isinstance(value, str):
            return value[:256]
    return None


def _affinity(document: dict[str, Any]) -> str:
    """`prompt_cache_key` keeps what belongs together on one replica, as far as load allows."""
    value = document.get("prompt_cache_key")
    return value if isinstance(value, str) else ""


def with_usage(document: dict[str, Any]) -> dict[str, Any]:
    """The request with the usage at the stream's end asked for."""
    options = document.get("stream_options")
    if options is None:
        options = {}
    if document.get("stream") is not True or not isinstance(options, dict):
        return document
    return {**document, "stream_options": {**options, "include_usage": True}}


def asks_usage(document: dict[str, Any]) -> bool:
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


class StreamMeter:
    """Counts tokens; where the client did not ask for usage, its chunk is taken out again.

    Without a usage chunk (the stream broke off) `completion_tokens` is the number of events, the
    error that ends it not among them. `error` is that one's document.
    """

    def __init__(self, *, pass_usage: bool, keep_text: bool) -> None:
        self._pass_usage, self._keep_text = pass_usage, keep_text
        self._events = 0
        self._usage: dict[str, Any] | None = None
        self._texts: list[str] = []
        self.done = False
        self.error: dict[str, Any] | None = None

    @property
    def begun(self) -> bool:
        """Something was said that is no error; comments say nothing."""
        return self._events > 0

    @property
    def prompt_tokens(self) -> int | None:
        return None if self._usage is None else _count(self._usage, "prompt_tokens")

    @property
    def completion_tokens(self) -> int | None:
        return self._events if self._usage is None else _count(self._usage, "completion_tokens")

    @property
    def text(self) -> str | None:
        return "".join(self._texts) if self._keep_text else None

    def push(self, events: bytes) -> bytes:
        """Whole events as they came; returns what the client gets of them."""
        lines = b"\n" + events
        self._events += lines.count(_EVENT)
        self.done = self.done or _DONE in lines
        if _ERROR in lines:
            self._events -= 1
            self.error = _document(lines[lines.index(_ERROR) + len(_EVENT) :])
        if _USAGE_KEY not in events and not self._keep_text:
            return events
        return b"".join(
            event + _END for event in events.split(_END) if event and not self._takes_out(event)
        )

    def _takes_out(self, event: bytes) -> bool:
        try:
            document = json.loads(event.removeprefix(_DATA))
            choices, usage = document["choices"], document.get("usage")
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if self._keep_text:
            self._texts += [_text(choice) for choice in choices]
        if not isinstance(usage, dict):
            return False
        self._usage = usage
        return not choices and not self._pass_usage


def _document(events: bytes) -> dict[str, Any]:
    """Of the first event, without its `data: `."""
    try:
        document = json.loads(events.split(_END, 1)[0])
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def _count(usage: dict[str, Any], name: str) -> int | None:
    return _whole(usage.get(name))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
