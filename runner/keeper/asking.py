"""The engine as one request asks it, over all of its lives: a Service of web/carry.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from contract import carry
from runner.errors import DeadlineExceeded, EngineFull, ModelChanged, RunnerError
from runner.keeper.follow_up import (
    CHAT,
    COMPLETIONS,
    Document,
    ToldIds,
    about_prompt,
    follow_up,
    goes_on,
    most_tokens,
    prompt_digest,
    with_ids,
)
from runner.keeper.lead import Lead
from web.answer import Answer, UpstreamError
from web.errors import ApiError, invalid_field
from web.events import ADMITTED, COMMENT, COMMENT_S, Events
from web.upstream import Upstream

Result = TypeVar("Result")
_WITHOUT_SPEC_S = 600.0
_LOOK_EACH_S = 1.0
_SERVER_ERRORS = 500


class EngineApi:
    """The API of this rank's engine. `max_model_len` is known once it has answered."""

    def __init__(self, lead: Lead) -> None:
        self.lead = lead
        # Of a stack that opens with another engine's arguments: what it parses we do not see.
        self.parses = any("parser" in item for item in lead.spec.extra_engine_args)
        url = f"http://127.0.0.1:{lead.spec.engine_port}"
        self.upstream = Upstream("the engine", url, deadline_s=_WITHOUT_SPEC_S)
        self.max_model_len = 0

    @property
    def deadline_s(self) -> float:
        served = self.lead.in_force
        return served.spec.request_deadline_s if served else _WITHOUT_SPEC_S


class Asking:
    """One request. Its answer tells its ids where it can be carried, and goes on behind those that
    `carry` says. `shows_ids`: its client asked for the engine's ids itself."""

    name = "the engine"

    def __init__(self, engine: EngineApi, *, shows_ids: bool) -> None:
        self._engine, self._lead = engine, engine.lead
        self._shows_ids, self.deadline_s = shows_ids, engine.deadline_s
        self._prompt: list[int] | None = None

    @property
    def who(self) -> str:
        return f"the engine of epoch {self._lead.history.epoch}"

    async def returned(self) -> None:
        """Ends as soon as it serves."""
        while not self._lead.ready or self._lead.requests.gate.closed:
            await self._lead.requests.until_returned(_LOOK_EACH_S)

    async def ask(
        self, path: str, document: Document, headers: Mapping[str, str], deadline: float
    ) -> Answer:
        """Once; raises UpstreamError and ApiError."""
        await self._admitted(deadline)
        stack = contextlib.ExitStack()
        try:
            ends = stack.enter_context(self._lead.requests.entered())
            answer, told = await _unless(ends, self._ask(path, document, headers, deadline))
        except BaseException:
            stack.close()
            raise
        if answer.events is None:
            stack.close()
            return _checked(answer)
        events = self._events(answer, told, ends, stack)

        async def close() -> None:
            await events.aclose()
            stack.close()
            if answer.close is not None:
                await answer.close()

        return replace(answer, events=events, close=close)

    async def _admitted(self, deadline: float) -> None:
        gate = self._lead.requests.gate
        if gate.closed:
            served = self._lead.in_force
            most = served.spec.max_concurrent_requests if served else 1
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                await gate.opened(left, most)
            except (DeadlineExceeded, EngineFull) as error:
                raise api_error(error) from error
        if not self._lead.ready:
            again = {"Retry-After": str(self._lead.retry_after_s)}
            raise UpstreamError(503, self._lead.reason, code="not_serving", headers=again)

    async def _ask(
        self, path: str, document: Document, headers: Mapping[str, str], deadline: float
    ) -> tuple[Answer, ToldIds | None]:
        upstream = self._engine.upstream
        question = {name: value for name, value in document.items() if name != carry.FIELD}
        given = document.get(carry.FIELD)
        if not goes_on(question) or (path == CHAT and self._engine.parses):
            if given is not None:
                raise invalid_field(carry.FIELD, "cannot be: no answer to this goes on behind ids")
            return await upstream.ask(path, question, headers, deadline), None
        told = None if given is None else carry.parse_field(given)
        seed = question.get("seed")
        ids = ToldIds(
            commit=self._commit,
            seed=seed if isinstance(seed, int) else 0,
            shows_ids=self._shows_ids,
            beginning=None if told is None else told.beginning,
            chat=told is not None and bool(told.ids[0]) and path == CHAT,
            delivered=0 if told is None else len(told.ids[0]),
        )
        if told is None or not told.ids[0]:
            return await upstream.ask(path, with_ids(question), headers, deadline), ids
        prompt = await self._prompt_ids(path, question, headers, deadline)
        self._check(told, prompt)
        room = self._engine.max_model_len - len(prompt)
        left = most_tokens(path, question, room) - len(told.ids[0])
        asked = follow_up(question, prompt, told.ids[0], max(1, left))
        return await upstream.ask(COMPLETIONS, asked, headers, deadline), ids

    @property
    def _commit(self) -> str:
        served = self._lead.in_force
        return served.commit if served else ""

    async def _prompt_ids(
        self, path: str, question: Document, headers: Mapping[str, str], deadline: float
    ) -> list[int]:
        """Those that the engine made of it, known from its answer before, or asked for."""
        if self._prompt is None:
            answer = _checked(
                await self._engine.upstream.ask(path, about_prompt(question), headers, deadline)
            )
            if answer.status != 200:
                raise answer.refusal(self.name)
            document = answer.document()
            choices = document.get("choices") or [{}]
            found = document.get("prompt_token_ids") or choices[0].get("prompt_token_ids")
            self._prompt = list(found or ())
        return self._prompt

    def _check(self, told: carry.Carry, prompt: list[int]) -> None:
        beginning = told.beginning
        if beginning.model_commit != self._commit:
            rule = f"is not the commit that is served, {self._commit!r}: ask again without carry"
            field = "carry.beginning.model_commit"
            raise api_error(ModelChanged(field, beginning.model_commit, rule))
        if beginning.prompt != prompt_digest(prompt):
            rule = "does not belong to this prompt: the ids are of an answer to another one"
            raise invalid_field("carry.beginning.prompt", rule, beginning.prompt)

    async def _events(
        self,
        answer: Answer,
        told: ToldIds | None,
        ends: asyncio.Future[RunnerError],
        stack: contextlib.ExitStack,
    ) -> Events:
        assert answer.events is not None
        coming: asyncio.Future[bytes | None] | None = None
        try:
            yield ADMITTED
            while True:
                coming = coming or asyncio.ensure_future(anext(answer.events, None))
                waited: set[asyncio.Future[Any]] = {coming, ends}
                await asyncio.wait(waited, timeout=COMMENT_S, return_when=asyncio.FIRST_COMPLETED)
                if ends.done():
                    raise api_error(ends.result())
                if not coming.done():
                    yield COMMENT
                    continue
                some, coming = coming.result(), None
                if some is None:
                    return
                self._lead.note_progress()
                yield b"".join(self._passed(event, told) for event in _events_of(some))
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            stack.close()

    def _passed(self, event: bytes, told: ToldIds | None) -> bytes:
        _check_event(event)
        if told is None:
            return event + b"\n\n"
        passed = told.push(event)
        self._prompt = self._prompt or told.prompt
        return passed


async def _unless(ends: asyncio.Future[RunnerError], work: Coroutine[Any, Any, Result]) -> Result:
    task = asyncio.create_task(work)
    try:
        waited: set[asyncio.Future[Any]] = {task, ends}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise api_error(ends.result())
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _checked(answer: Answer) -> Answer:
    """Raises UpstreamError where the engine has failed: another life of it may not."""
    if answer.status < _SERVER_ERRORS:
        return answer
    said = answer.error.get("message") or f"HTTP {answer.status}"
    raise UpstreamError(502, f"the engine failed: {said}", at_work=True, code="engine_failed")


def _events_of(some: bytes) -> list[bytes]:
    return [event for event in some.split(b"\n\n") if event.strip()]


def _check_event(event: bytes) -> None:
    """An engine that dies says so, or ends what it was at."""
    if b'"error"' not in event and b'"abort"' not in event:
        return
    try:
        document = json.loads(event.strip().removeprefix(b"data:"))
    except ValueError:
        return
    error = document.get("error") if isinstance(document, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(error, dict) and isinstance(code, int) and code >= _SERVER_ERRORS:
        message = f"the engine failed: {error.get('message')}"
        raise UpstreamError(502, message, at_work=True, code="engine_failed")
    choices = document.get("choices", ()) if isinstance(document, dict) else ()
    if any(choice.get("finish_reason") == "abort" for choice in choices):
        message = "the engine gave the request up"
        raise UpstreamError(502, message, at_work=True, code="engine_failed")


def api_error(error: RunnerError) -> ApiError:
    """It in the words of HTTP."""
    again = error.retry_after_s
    headers = None if again is None else {"Retry-After": str(again)}
    field = getattr(error, "field", None)
    return ApiError(error.status, str(error), param=field, code=error.code, headers=headers)
