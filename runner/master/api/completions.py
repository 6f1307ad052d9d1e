"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.master.api.answers import Events, StreamUsage, answer_head, event_stream, usage
from runner.master.api.bodies import CompletionBody, parse_body
from runner.master.api.defaults import COMPLETION_MAX_TOKENS
from runner.master.api.prompts import MasterService, service_of
from runner.master.api.token_logprobs import completion_logprobs
from runner.master.engine.requests import TokenEvent
from runner.master.text.choice import TextPiece, TextRequest
from runner.master.text.streams import collect
from web.body import read_json_object
from web.disconnect import until_disconnected

_HEAD = ("text_completion", "cmpl")


@dataclass(frozen=True)
class _Asked:
    """The choices of all prompts, `body.n` for each, the prompts' texts for echo, their tokens."""

    body: CompletionBody
    choices: list[TextRequest]
    texts: list[str]
    prompt_tokens: int


async def completions(request: Request) -> Response:
    service = service_of(request)
    body = parse_body(CompletionBody, await read_json_object(request))
    service.check_model(body.model)
    asked = await _ask(service, body)
    if body.stream:
        return event_stream(_chunks(service, asked), service.spec.request_deadline_s)
    return await until_disconnected(request.receive, _whole(service, asked))


async def _ask(service: MasterService, body: CompletionBody) -> _Asked:
    sampling = service.sampling(body, logprobs=-1 if body.logprobs is None else body.logprobs)
    asked = _Asked(body, [], [], 0)
    prompt_tokens = 0
    prompts = body.prompts()
    service.engine.check_place(len(prompts) * body.n)
    for prompt in prompts:
        prompt_ids = await service.prompt_ids("prompt", prompt)
        room = service.room("prompt", prompt_ids)
        prompt_tokens += len(prompt_ids)
        asked.choices.extend(
            service.choices(
                prompt_ids,
                service.defaults.max_new_tokens(
                    "max_tokens", body.max_tokens, COMPLETION_MAX_TOKENS, room
                ),
                sampling,
                service.defaults.stop(body.stop),
                count=body.n,
                continues_prompt=True,
                first_index=len(asked.choices),
            )
        )
        text = prompt if isinstance(prompt, str) else service.text.decode(prompt_ids)
        asked.texts.append(text if body.echo else "")
    return _Asked(body, asked.choices, asked.texts, prompt_tokens)


async def _whole(service: MasterService, asked: _Asked) -> Response:
    finished = await collect(service.pieces(asked.choices), len(asked.choices))
    document = answer_head(*_HEAD, asked.body.model)
    document["choices"] = [
        {
            "index": index,
            "text": asked.texts[index // asked.body.n] + one.text,
            "logprobs": _logprobs(service, asked.body, one.events, 0)[0],
            "finish_reason": one.finish_reason,
        }
        for index, one in enumerate(finished)
    ]
    document["usage"] = usage(asked.prompt_tokens, sum(one.tokens for one in finished))
    return JSONResponse(document)


async def _chunks(service: MasterService, asked: _Asked) -> Events:
    head = answer_head(*_HEAD, asked.body.model)
    counted = StreamUsage(asked.body.include_usage, asked.prompt_tokens)
    offsets = [0] * len(asked.choices)
    begun: set[int] = set()
    async with aclosing(service.pieces(asked.choices)) as pieces:
        async for piece in pieces:
            counted.count(piece.index, piece.tokens)
            echoed = "" if piece.index in begun else asked.texts[piece.index // asked.body.n]
            begun.add(piece.index)
            logprobs, offsets[piece.index] = _logprobs(
                service, asked.body, piece.events, offsets[piece.index]
            )
            yield counted.chunk(head, _choice(piece, echoed + piece.text, logprobs))
    for document in counted.last(head):
        yield document


def _choice(piece: TextPiece, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "index": piece.index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": piece.finish_reason,
    }


def _logprobs(
    service: MasterService, body: CompletionBody, events: Sequence[TokenEvent], text_offset: int
) -> tuple[dict[str, Any] | None, int]:
    if body.logprobs is None:
        return None, 0
    return completion_logprobs(events, service.text.token_bytes, text_offset)
