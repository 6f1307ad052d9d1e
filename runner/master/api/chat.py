"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.master.api.answers import Events, StreamUsage, answer_head, event_stream, usage
from runner.master.api.bodies import ChatBody, parse_body
from runner.master.api.prompts import MasterService, service_of
from runner.master.api.token_logprobs import chat_logprobs
from runner.master.engine.requests import TokenEvent
from runner.master.text.choice import TextPiece, TextRequest
from runner.master.text.streams import collect
from web.body import read_json_object
from web.disconnect import until_disconnected


async def chat_completions(request: Request) -> Response:
    """Without max_tokens the answer may fill the rest of the context."""
    service = service_of(request)
    body = parse_body(ChatBody, await read_json_object(request))
    service.check_model(body.model)
    choices = await _choices(service, body)
    if body.stream:
        return event_stream(_chunks(service, body, choices), service.spec.request_deadline_s)
    return await until_disconnected(request.receive, _whole(service, body, choices))


async def _choices(service: MasterService, body: ChatBody) -> list[TextRequest]:
    service.engine.check_place(body.n)
    service.check_messages(len(body.messages))
    prompt_ids = await service.chat_ids(body.conversation())
    room = service.room("messages", prompt_ids)
    field, asked = "max_completion_tokens", body.max_completion_tokens
    if asked is None:
        field, asked = "max_tokens", body.max_tokens
    return service.choices(
        prompt_ids,
        service.defaults.max_new_tokens(field, asked, room, room),
        service.sampling(body, logprobs=(body.top_logprobs or 0) if body.logprobs else -1),
        service.defaults.stop(body.stop),
        count=body.n,
    )


async def _whole(
    service: MasterService, body: ChatBody, choices: Sequence[TextRequest]
) -> Response:
    finished = await collect(service.pieces(choices), len(choices))
    document = answer_head("chat.completion", "chatcmpl", body.model)
    document["choices"] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": one.text, "refusal": None},
            "logprobs": _logprobs(service, body, one.events),
            "finish_reason": one.finish_reason,
        }
        for index, one in enumerate(finished)
    ]
    prompt_tokens = len(choices[0].generation.prompt_ids)
    document["usage"] = usage(prompt_tokens, sum(one.tokens for one in finished))
    return JSONResponse(document)


async def _chunks(service: MasterService, body: ChatBody, choices: Sequence[TextRequest]) -> Events:
    """The role of a choice comes with its first text, its finish_reason in a chunk without text."""
    head = answer_head("chat.completion.chunk", "chatcmpl", body.model)
    counted = StreamUsage(body.include_usage, len(choices[0].generation.prompt_ids))
    begun: set[int] = set()
    async with aclosing(service.pieces(choices)) as pieces:
        async for piece in pieces:
            counted.count(piece.index, piece.tokens)
            delta: dict[str, Any] = {}
            if piece.index not in begun:
                begun.add(piece.index)
                delta = {"role": "assistant", "content": ""}
            if piece.text:
                delta["content"] = piece.text
            if delta:
                yield counted.chunk(head, _choice(service, body, piece, delta))
            if piece.finish_reason is not None:
                last = {"index": piece.index, "delta": {}, "logprobs": None}
                yield counted.chunk(head, {**last, "finish_reason": piece.finish_reason})
    for document in counted.last(head):
        yield document


def _choice(
    service: MasterService, body: ChatBody, piece: TextPiece, delta: dict[str, Any]
) -> dict[str, Any]:
    return {
        "index": piece.index,
        "delta": delta,
        "logprobs": _logprobs(service, body, piece.events),
        "finish_reason": None,
    }


def _logprobs(
    service: MasterService, body: ChatBody, events: Sequence[TokenEvent]
) -> dict[str, Any] | None:
    return chat_logprobs(events, service.text.token_bytes) if body.logprobs else None
