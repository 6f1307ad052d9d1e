"""An engine that plays prepared tokens: for text, streams and errors that need no model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator

from runner.errors import NotServing, RunnerError
from runner.master.engine.gate import Gate
from runner.master.engine.report import EngineStatistics
from runner.master.engine.requests import (
    FINISHED_BY_LENGTH,
    FINISHED_BY_STOP,
    Event,
    GenerationRequest,
    PromptEvent,
    TokenEvent,
)
from runner.master.engine.tokens import Tokens
from runner.transport.control import Served
from tests.runner.master.serving import group_spec


class ScriptedEngine:
    """Plays `script(request)` as the generated ids; of a request that is carried the rest.

    `failure` comes after `fail_after` tokens; without any the request is refused, as it is where
    `script` raises. Of each request only `allowed` tokens come until it is raised.
    """

    def __init__(self, script: Callable[[GenerationRequest], list[int]]) -> None:
        self.script = script
        self.ready, self.state, self.reason = True, "ready", ""
        self.retry_after_s = 1
        self.max_model_len: int | None = 512
        self.model_commit, self.vocabulary_size = "a-commit", 49152
        self.in_force = Served(group_spec(), self.model_commit)
        self.gate, self.swap = Gate(), None
        self.requests: list[GenerationRequest] = []
        self.open = 0
        self.delay_s = 0.0
        self.allowed: float = math.inf
        self.failure: RunnerError | None = None
        self.fail_after = 0
        self.reused = 0  # tokens of each prompt, by what the engine tells

    async def let_in(self, limit_s: float) -> None:
        await self.gate.opened(limit_s, 100)

    def check_place(self, choices: int = 1, *, domain: str = "", carried: bool = False) -> None:
        """There is always one."""

    @property
    def context(self) -> int:
        if self.max_model_len is None:
            raise NotServing(self.reason)
        return self.max_model_len

    def generate(self, request: GenerationRequest) -> Tokens:
        self.requests.append(request)
        if self.failure is not None and not self.fail_after:
            raise self.failure
        done = len(request.carried.ids) if request.carried else 0
        ids = self.script(request)[done : request.max_new_tokens]
        arrived: asyncio.Queue[Event | RunnerError] = asyncio.Queue()

        async def play() -> None:
            for place, item in enumerate(self._items(request, ids)):
                await asyncio.sleep(self.delay_s)
                while place >= self.allowed:  # noqa: ASYNC110 (of a test in another thread)
                    await asyncio.sleep(0.01)
                arrived.put_nowait(item)

        playing = asyncio.create_task(play())
        self.open += 1

        def leave() -> None:
            playing.cancel()
            self.open -= 1

        return Tokens(arrived, leave, lambda: self.reused)

    def _items(self, request: GenerationRequest, ids: list[int]) -> Iterator[Event | RunnerError]:
        if request.echo and not (request.carried and request.carried.ids):
            yield _of_prompt(request)
        for place, token_id in enumerate(ids):
            if self.failure is not None and place == self.fail_after:
                yield self.failure
                return
            reason = FINISHED_BY_LENGTH if place == len(ids) - 1 else None
            if token_id in request.sampling.stop_token_ids:
                reason = FINISHED_BY_STOP
            yield _event(request, token_id, reason)
            if reason is not None:
                return

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(running=self.open)

    def topology(self) -> dict[str, object]:
        return {"epoch": 1, "ranks": []}


def _event(request: GenerationRequest, token_id: int, reason: str | None = None) -> TokenEvent:
    reported = request.sampling.logprobs
    return TokenEvent(
        token_id,
        -0.5 if reported >= 0 else None,
        tuple((token_id + other, -0.5 - other) for other in range(max(reported, 0))),
        reason,
    )


def _of_prompt(request: GenerationRequest) -> PromptEvent:
    reason = None if request.max_new_tokens else FINISHED_BY_LENGTH
    if request.sampling.logprobs < 0:
        return PromptEvent(finish_reason=reason)
    first, *others = request.prompt_ids
    return PromptEvent((TokenEvent(first), *(_event(request, other) for other in others)), reason)
