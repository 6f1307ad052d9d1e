"""Rank 0's HTTP: the engine's API relayed and carried, and what the keeper says of the group."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, cast

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from contract.generation import openai_parameters
from contract.signed_request import Verifier
from runner.errors import RunnerError
from runner.keeper.asking import Asking, EngineApi, api_error
from runner.keeper.follow_up import CHAT, COMPLETIONS, Document
from runner.keeper.metrics import LeadCollector, with_own_names
from runner.keeper.watch import Watch
from runner.master.api.bodies import GenerateBody, parse_body
from runner.master.api.defaults import GenerationDefaults
from runner.master.api.group_spec import PATH as GROUP_SPEC
from runner.master.api.group_spec import get_group_spec, put_group_spec
from runner.master.api.openai_bodies import AiosChatBody
from runner.master.engine.report import EngineStatistics, RankStatistics, describe_topology
from runner.master.engine.step_cost import StageCost
from runner.master.group.formation import RankGroup
from web.answer import Answer
from web.body import read_json_object
from web.carry import Carrier, asks_for_ids
from web.disconnect import until_disconnected
from web.domain import DomainMiddleware, current_domain
from web.errors import ApiError, install_error_handlers
from web.events import DONE, Events, EventStream, changes, event
from web.proof import Proof

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]
AIOS_CHAT, GENERATE, SET_CONFIG = "/v1/chat/", "/generate", "/set_config"
GENERATING = (GENERATE, COMPLETIONS, CHAT, AIOS_CHAT)
SERVED = (CHAT, COMPLETIONS, "/v1/models", GENERATE, SET_CONFIG)


def create_app(
    engine: EngineApi,
    watch: Watch,
    lifespan: Lifespan,
    management_key: Callable[[], str] | None = None,
    verifier: Verifier | None = None,
) -> Starlette:
    """As the master's: `management_key` and `verifier` are for verbs that change something."""
    proof = Proof(engine.lead.spec.bind_address, management_key)
    app = Starlette(
        routes=proof.guard(_routes(), (*GENERATING, GROUP_SPEC)),
        middleware=[Middleware(DomainMiddleware)],
        lifespan=lifespan,
    )
    state = app.state
    # As runner/master/api has them, for what is taken from there.
    state.spec, state.engine, state.verifier = engine.lead.spec, engine.lead, verifier
    state.api, state.watch, state.defaults = engine, watch, GenerationDefaults()
    state.registry = CollectorRegistry()
    state.registry.register(LeadCollector(engine.lead))
    state.carrier = Carrier(state.registry)
    install_error_handlers(app, SERVED)
    app.add_exception_handler(RunnerError, _failed)
    return app


def _routes() -> list[Route]:
    return [
        Route(GENERATE, generate, methods=["POST"]),
        Route(SET_CONFIG, set_config, methods=["POST"]),
        Route(SET_CONFIG, get_config, methods=["GET"]),
        Route(COMPLETIONS, relay, methods=["POST"]),
        Route(CHAT, relay, methods=["POST"]),
        Route(AIOS_CHAT, aios_chat, methods=["POST"]),
        Route("/v1/{path:path}", relay_reading, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route(GROUP_SPEC, get_group_spec, methods=["GET"]),
        Route(GROUP_SPEC, put_group_spec, methods=["PUT"]),
        Route("/topology", topology, methods=["GET"]),
        Route("/topology/events", topology_events, methods=["GET"]),
    ]


async def _failed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RunnerError)
    told = api_error(error)
    return JSONResponse(told.body, told.status, headers=told.headers)


# What generates


async def relay(request: Request) -> Response:
    """The body as the engine takes it, with the defaults of /set_config below it."""
    document = await read_json_object(request)
    return await _answer(request, request.url.path, document)


async def aios_chat(request: Request) -> Response:
    """AIOS's chat: the request's own fields go before those of generation_config."""
    document = await read_json_object(request)
    body = parse_body(AiosChatBody, document)
    own = ("generation_config", "enable_streaming")
    asked = {name: value for name, value in document.items() if name not in own}
    asked["model"] = body.model or request.app.state.spec.deployment_name
    config = {} if body.generation_config is None else body.generation_config.model_dump()
    for name, value in openai_parameters(config).items():
        asked.setdefault(name, value)
    return await _answer(request, CHAT, asked | {"stream": body.stream})


async def generate(request: Request) -> Response:
    """AIOS's: {"output": text, ...}; with enable_streaming events {"output": piece}."""
    body = parse_body(GenerateBody, await read_json_object(request))
    asked: Document = {
        "model": request.app.state.spec.deployment_name,
        "prompt": body.prompt,
        "stream": body.enable_streaming,
        **body.model_dump(
            exclude_none=True,
            exclude={"prompt", "max_new_tokens", "do_sample", "enable_streaming"},
        ),
    }
    if body.max_new_tokens is not None:
        asked["max_tokens"] = body.max_new_tokens
    if body.do_sample is False:
        asked["temperature"] = 0
    if body.enable_streaming:
        asked["stream_options"] = {"include_usage": True}
    asked = _with_defaults(request, COMPLETIONS, asked)
    asked.setdefault("max_tokens", GenerateBody.usual_tokens)
    answer = await until_disconnected(request.receive, _asked(request, COMPLETIONS, asked, False))
    if answer.events is not None:
        stream = _outputs(answer.events)
        return EventStream(stream, close=answer.close, deadline=answer.deadline)
    if answer.status != 200:
        return answer.response()
    document = answer.document()
    choice = document["choices"][0]
    found = {"output": choice["text"], "finish_reason": choice["finish_reason"]}
    return JSONResponse({**found, "usage": document.get("usage")})


async def _outputs(events: Events) -> Events:
    """A completion's events as /generate's: the last one has finish_reason and usage."""
    ending: Document | None = None
    async with aclosing(events):
        async for some in events:
            for item in some.split(b"\n\n"):
                content = item.strip().removeprefix(b"data:").strip()
                if not content or content.startswith(b":") or content == b"[DONE]":
                    yield b""
                    continue
                document = json.loads(content)
                if "error" in document:
                    yield event(document)
                    return
                for choice in document.get("choices", ()):
                    piece = {"output": choice.get("text", "")}
                    if choice.get("finish_reason"):
                        ending = piece | {"finish_reason": choice["finish_reason"]}
                    else:
                        yield event(piece)
                if ending is not None and document.get("usage"):
                    ending["usage"] = document["usage"]
    if ending is not None:
        yield event(ending)
    yield DONE


async def _answer(request: Request, path: str, document: Document) -> Response:
    document = _with_defaults(request, path, document)
    asks = asks_for_ids(request.headers)
    answer = await until_disconnected(request.receive, _asked(request, path, document, asks))
    return answer.response()


async def _asked(request: Request, path: str, document: Document, asks_ids: bool) -> Answer:
    state = request.app.state
    asking = Asking(state.api, shows_ids=document.get("return_token_ids") is True)
    if domain := current_domain():
        # Requests of several domains share no prefix of the engine's cache.
        document = {**document, "cache_salt": domain}
    # An answer that comes whole tells no ids: it is asked for anew.
    passes = asks_ids and document.get("stream") is True
    carrier: Carrier = state.carrier
    return await carrier.ask(asking, path, document, passes_lines=passes)


def _with_defaults(request: Request, path: str, document: Document) -> Document:
    defaults: GenerationDefaults = request.app.state.defaults
    found = {**document}
    for name, value in defaults.in_force().items():
        if name == "max_new_tokens":
            if not found.get("max_completion_tokens"):
                found.setdefault("max_tokens", value)
        elif name == "do_sample":
            if not value and document.get("temperature") is None:
                found["temperature"] = 0
        elif found.get(name) is None:
            found[name] = value
    if path == CHAT and found.get("max_completion_tokens") is not None:
        found.pop("max_tokens", None)
    return found


async def set_config(request: Request) -> Response:
    """Change the defaults in memory; answers with all that are in force."""
    request.app.state.defaults.update(await read_json_object(request))
    return await get_config(request)


async def get_config(request: Request) -> Response:
    return JSONResponse(request.app.state.defaults.current())


# What reads


async def relay_reading(request: Request) -> Response:
    """The engine's own: its models, and what else it says of itself below /v1."""
    state = request.app.state
    if not state.engine.ready:
        raise ApiError(503, state.engine.reason, code="not_serving", headers={"Retry-After": "1"})
    return JSONResponse(await state.api.upstream.get(request.url.path))


async def livez(_request: Request) -> Response:
    return JSONResponse({"live": True})


async def readyz(request: Request) -> Response:
    """200 while requests are served; 503 with the reason and Retry-After while not. `?self` as the
    master's: before there is anything to serve it is ready to be told."""
    lead = request.app.state.engine
    waits = "self" in request.query_params and lead.in_force is None
    if lead.ready or lead.requests.gate.closed or waits:
        return JSONResponse({"ready": True})
    state = {"ready": False, "state": lead.state, "reason": lead.reason}
    return JSONResponse(state, 503, headers={"Retry-After": str(lead.retry_after_s)})


async def metrics(request: Request) -> Response:
    """The engine's, those under AIOS's names, and the keeper's own."""
    state = request.app.state
    own = generate_latest(state.registry).decode()
    text = with_own_names(state.watch.figures) + own
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def topology(request: Request) -> Response:
    """As the master's; what only our own stages know is 0 or null."""
    return JSONResponse(_topology(request.app.state))


async def topology_events(request: Request) -> Response:
    """It as server-sent events: at once, at each change, and once in a while."""
    return EventStream(changes(partial(_topology, request.app.state)))


def _topology(state: State) -> dict[str, Any]:
    lead, figures = state.engine, state.watch.numbers
    served = lead.in_force
    stages, joins = lead.stages(), lead.joins()
    restarts = lead.history.restarts(len(stages))
    ranks = tuple(
        RankStatistics(rank, stage, restarts[rank], StageCost(), join)
        for rank, (stage, join) in enumerate(zip(stages, joins, strict=True))
    )
    statistics = EngineStatistics(
        running=int(figures.get("vllm:num_requests_running", 0)),
        waiting=int(figures.get("vllm:num_requests_waiting", 0)),
        generated_tokens=int(figures.get("vllm:generation_tokens_total", 0)),
        steps=int(figures.get("vllm:iteration_tokens_total_count", 0)),
        micro_batches=len(stages),
        ranks=ranks,
    )
    return {
        "deployment_name": state.spec.deployment_name,
        "platform": "vllm",
        "model_name": None if served is None else served.spec.model_name,
        "spec_hash": None if served is None else served.spec_hash,
        "swap": None if lead.swap is None else lead.swap.describe(),
        "state": lead.state,
        "reason": lead.reason,
        "ready": lead.ready,
        **describe_topology(cast(RankGroup, lead), statistics, None),
        "engine": figures,
    }
