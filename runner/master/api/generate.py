"""POST /generate, the AIOS body, and /set_config."""

from __future__ import annotations

from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.master.api.answers import Events, event_stream, usage
from runner.master.api.bodies import GenerateBody, parse_body
from runner.master.api.defaults import GENERATE_MAX_NEW_TOKENS
from runner.master.api.prompts import MasterService, service_of
from runner.master.text.choice import TextRequest
from runner.master.text.streams import collect
from web.body import read_json_object
from web.disconnect import until_disconnected


async def generate(request: Request) -> Response:
    """{"output": text}; with enable_streaming events {"output": piece}, the last one with
    finish_reason and usage."""
    service = service_of(request)
    body = parse_body(GenerateBody, await read_json_object(request))
    choice = await _choice(service, body)
    if body.enable_streaming:
        return event_stream(_events(service, choice), service.spec.request_deadline_s)
    return await until_disconnected(request.receive, _whole(service, choice))


async def _choice(service: MasterService, body: GenerateBody) -> TextRequest:
    do_sample = service.defaults.generate_samples(body, body.do_sample)
    sampling = service.sampling(body, do_sample=do_sample)
    service.engine.check_place()
    prompt_ids = await service.prompt_ids("prompt", body.prompt)
    room = service.room("prompt", prompt_ids)
    tokens = service.defaults.max_new_tokens(
        "max_new_tokens", body.max_new_tokens, GENERATE_MAX_NEW_TOKENS, room
    )
    stop = service.defaults.stop(body.stop)
    return service.choices(prompt_ids, tokens, sampling, stop, continues_prompt=True)[0]


async def _whole(service: MasterService, choice: TextRequest) -> Response:
    [one] = await collect(service.pieces([choice]), 1)
    return JSONResponse(
        {
            "output": one.text,
            "finish_reason": one.finish_reason,
            "usage": usage(len(choice.generation.prompt_ids), one.tokens),
        }
    )


async def _events(service: MasterService, choice: TextRequest) -> Events:
    async with aclosing(service.pieces([choice])) as pieces:
        async for piece in pieces:
            if piece.finish_reason is None:
                yield {"output": piece.text}
                continue
            yield {
                "output": piece.text,
                "finish_reason": piece.finish_reason,
                "usage": usage(len(choice.generation.prompt_ids), piece.tokens),
            }


async def set_config(request: Request) -> Response:
    """Change the defaults in memory; answers with all that are in force."""
    service = service_of(request)
    service.defaults.update(await read_json_object(request))
    return JSONResponse(service.defaults.current())


async def get_config(request: Request) -> Response:
    return JSONResponse(service_of(request).defaults.current())
