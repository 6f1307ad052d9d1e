"""One request that is carried: asked, passed on, and asked again after the death of who had it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from contract import carry
from web import deadline as request_deadline
from web.answer import Answer, UpstreamError
from web.delivered import Delivered
from web.errors import ApiError, status_of
from web.events import ADMITTED, Events

# What nobody has taken yet waits for so long.
PATIENCE_S = 30.0
# Between two tries while the service says that it serves and yet does not.
PAUSE_S, LONGEST_PAUSE_S = 0.25, 2.0
# Who tells ids comments every 10 s; who says nothing for so long is cut off, and no reset says so.
SILENCE_S = 30.0
# Of a carry: new text came, or the end; lost once more; answered with an error. Of a request: what
# it is worth waiting for is over.
OUTCOMES = _WENT_ON, _FRUITLESS, _REFUSED, _GIVEN_UP = (
    "went_on",
    "fruitless",
    "refused",
    "given_up",
)
log = logging.getLogger("web.carry")


class Service(Protocol):
    """Who can be asked: one process, or one of several. `name` is what errors call it, `who` the
    one asked last."""

    deadline_s: float

    @property
    def name(self) -> str: ...

    @property
    def who(self) -> str: ...

    async def ask(
        self, path: str, document: dict[str, Any], headers: Mapping[str, str], deadline: float
    ) -> Answer:
        """Once. Raises UpstreamError, here and from the answer's events."""

    async def returned(self) -> None:
        """Called after a failure; ends when it is worth asking again. Raises ApiError where it
        never will be."""


class CarriedRequest:
    """One request, over as many answers as it takes. `count` is told of OUTCOMES."""

    def __init__(
        self,
        service: Service,
        path: str,
        document: dict[str, Any],
        delivered: Delivered,
        count: Callable[[str], None],
    ) -> None:
        self._service, self._path, self._document = service, path, document
        self._delivered, self._count = delivered, count
        allowed = request_deadline.remaining_s(service.deadline_s)
        self._began = asyncio.get_running_loop().time()
        self._deadline = self._began + allowed
        # Some service has or had it, so that it waits for more than PATIENCE_S.
        self._taken = delivered.carry is not None
        # Since the last loss nobody has gone on.
        self._carried = False
        self._failures = 0
        self._answer: Answer | None = None

    async def streamed(self) -> Answer:
        answer = await self._in_time(self._ask(None))
        if answer.events is None:
            return answer
        events = self._events(answer)

        async def close() -> None:
            await events.aclose()
            await self._close()

        return replace(
            answer,
            events=events,
            close=close,
            deadline=self._deadline,
            too_late=self._too_late(),
        )

    async def whole(self) -> Answer:
        return await self._in_time(self._whole())

    async def _in_time(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await work
        except TimeoutError as error:
            raise self._too_late() from error

    async def _whole(self) -> Answer:
        answer = await self._ask(None)
        if answer.events is None:
            return answer
        try:
            async with aclosing(self._pieces(answer)) as pieces:
                async for _ in pieces:
                    pass
        except _Refused as refused:
            return refused.answer
        finally:
            await self._close()
        headers = {**answer.headers, "content-type": "application/json"}
        if (error := self._delivered.error) is not None:
            return Answer(status_of(error), headers, json.dumps(error).encode())
        return Answer(answer.status, headers, self._delivered.content)

    async def _events(self, answer: Answer) -> Events:
        try:
            yield ADMITTED
            async with aclosing(self._pieces(answer)) as pieces:
                async for piece in pieces:
                    if piece:
                        yield piece
        except _Refused as refused:
            raise refused.answer.refusal(self._service.name) from refused
        finally:
            await self._close()

    async def _pieces(self, answer: Answer) -> Events:
        """What is passed on, over all connections. Raises _Refused, UpstreamError and ApiError."""
        while True:
            try:
                async with aclosing(self._of_one(answer)) as pieces:
                    async for piece in pieces:
                        yield piece
            except UpstreamError as error:
                failure = error
            else:
                if self._delivered.ended:
                    return
                failure = self._cut()
            await self._close()
            answer = await self._ask(failure)
            if answer.events is None:
                raise _Refused(answer)

    async def _of_one(self, answer: Answer) -> Events:
        assert answer.events is not None
        async with aclosing(answer.events) as events:
            while (some := await self._next(events)) is not None:
                passed, failure = self._take(some)
                self._note_progress()
                yield passed
                if failure is not None:
                    raise failure
                if self._delivered.ended:
                    return
        yield self._delivered.closed()

    async def _next(self, events: Events) -> bytes | None:
        """None at the end."""
        try:
            async with asyncio.timeout(SILENCE_S if self._delivered.knows_ids else None):
                return await anext(events, None)
        except TimeoutError as error:
            message = f"{self._service.who} has said nothing for {SILENCE_S:g} s"
            raise UpstreamError(502, message, at_work=True, code="upstream_silent") from error

    def _take(self, some: bytes) -> tuple[bytes, ApiError | None]:
        """What is passed on of some events, and what is wrong with the one after them."""
        passed = b""
        for event in self._delivered.whole_ones(some):
            try:
                passed += self._delivered.push(event)
            except ApiError as error:
                return passed, error
            if self._delivered.ended:
                break
        return passed, None

    async def _ask(self, failure: UpstreamError | Answer | None) -> Answer:
        """The next answer that no waiting would make a better one; `failure` came before it."""
        while True:
            if failure is not None and not await self._may_ask_again(failure):
                self._count(_GIVEN_UP)
                if isinstance(failure, Answer):
                    return failure
                raise self._last_error(failure)
            self._delivered.connected()
            try:
                self._answer = await self._service.ask(
                    self._path, self._next_document(), self._headers(), self._deadline
                )
            except UpstreamError as error:
                failure = error
                continue
            if not self._is_passing(self._answer):
                self._note_answer(self._answer)
                return self._answer
            failure = self._answer

    async def _may_ask_again(self, failure: UpstreamError | Answer) -> bool:
        """After waiting for the service; False where the request is to end with `failure`."""
        if isinstance(failure, UpstreamError) and failure.at_work and not self._lost():
            return False
        if self._delivered.carry is None and self._delivered.begun:
            return False
        now = asyncio.get_running_loop().time()
        until = self._deadline if self._taken else min(self._deadline, self._began + PATIENCE_S)
        if now >= until:
            return False
        self._log(failure)
        pause = min(PAUSE_S * 2 ** min(self._failures, 8), LONGEST_PAUSE_S) if self._failures else 0
        self._failures += 1
        try:
            async with asyncio.timeout_at(until):
                await asyncio.sleep(pause)
                await self._service.returned()
        except TimeoutError:
            if until < self._deadline:
                return False
            self._count(_GIVEN_UP)
            raise self._too_late() from None
        return True

    def _lost(self) -> bool:
        """Whoever was at work is gone; False where that has happened too often."""
        if self._carried:
            self._count(_FRUITLESS)
        self._taken = self._carried = True
        self._delivered.fruitless += 1
        return self._delivered.fruitless <= carry.MOST_FRUITLESS

    def _note_progress(self) -> None:
        if self._delivered.fruitless == 0:
            self._failures = 0
            if self._carried:
                self._carried = False
                self._count(_WENT_ON if self._delivered.error is None else _REFUSED)
        self._taken = self._taken or self._delivered.carry is not None

    def _note_answer(self, answer: Answer) -> None:
        if answer.events is None and self._carried:
            self._carried = False
            self._count(_WENT_ON if answer.status < 400 else _REFUSED)

    def _is_passing(self, answer: Answer) -> bool:
        """Whether waiting makes a better one. A tier of ours that says 502 has waited itself."""
        if answer.events is not None:
            return False
        if answer.status == 429:
            # A queue that was full when the request came in is a refusal, one on its way is not.
            return self._taken
        return answer.status == 503 or (answer.status == 502 and not answer.error)

    def _next_document(self) -> dict[str, Any]:
        told = self._delivered.carry
        return self._document if told is None else self._document | {carry.FIELD: carry.field(told)}

    def _headers(self) -> dict[str, str]:
        again = {carry.AGAIN_HEADER: "1"} if self._delivered.fruitless else {}
        return {carry.HEADER: carry.ASKS_FOR_IDS, **again}

    def _last_error(self, failure: UpstreamError) -> UpstreamError:
        if failure.status != 502 or not self._delivered.begun:
            return failure
        message = f"{self._service.who} died while it answered; what came until here is cut"
        return UpstreamError(502, message, code="upstream_died_mid_stream")

    def _cut(self) -> UpstreamError:
        message = f"{self._service.who} ended its answer before the end"
        return UpstreamError(502, message, at_work=True, code="upstream_broke_off")

    def _too_late(self) -> ApiError:
        return request_deadline.too_late(self._service.name, self._service.deadline_s)

    def _log(self, failure: UpstreamError | Answer) -> None:
        why = f"HTTP {failure.status}" if isinstance(failure, Answer) else str(failure)
        fields = {
            "reason": why,
            "path": self._path,
            "tokens": self._delivered.tokens,
            "fruitless": self._delivered.fruitless,
        }
        log.warning("a request waits to be asked again", extra={"fields": fields})

    async def _close(self) -> None:
        if self._answer is not None and self._answer.close is not None:
            await self._answer.close()


class _Refused(Exception):
    """Asked again, the service answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer
