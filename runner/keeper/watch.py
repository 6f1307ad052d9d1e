"""Whether the engine still steps, and whether it has begun to: asked over its own HTTP.

Its /health says 200 while a rank of it is dead, so that nothing is believed but steps and tokens.
"""

from __future__ import annotations

import asyncio
import time

import httpx

from runner.errors import RunnerError
from runner.keeper.asking import EngineApi
from runner.keeper.follow_up import COMPLETIONS
from runner.keeper.metrics import STEPS, figures

_LOOK_EACH_S, _ANSWER_S = 1.0, 5.0
_FIRST_TOKEN_S = 300.0


class Progress:
    """What is seen of one epoch. Pure: it is told the time."""

    def __init__(self, limit_s: float, now: float) -> None:
        self._limit_s, self._moved = limit_s, now
        self._steps: float | None = None

    def seen(self, counted: float | None, open_requests: int, now: float) -> str:
        """Why the epoch is to end, "" where it goes on. `counted` None: the engine said nothing."""
        idle = counted is not None and not open_requests
        if idle or (counted is not None and counted != self._steps):
            self._moved = now
        self._steps = self._steps if counted is None else counted
        if now - self._moved <= self._limit_s:
            return ""
        if counted is None:
            return f"the engine has said nothing for {self._limit_s:g} s"
        return (
            f"the engine has not stepped for {self._limit_s:g} s, and {open_requests} requests are"
            " open"
        )


class Watch:
    """Of the engine beside rank 0's keeper."""

    def __init__(self, engine: EngineApi) -> None:
        self._engine, self._lead = engine, engine.lead
        self.figures = ""
        """The engine's metrics as it said them last; `numbers` are some of them."""
        self.numbers: dict[str, float] = {}

    async def run(self) -> None:
        """Ends the epoch of an engine that stands still, again and again."""
        async with self._client() as client:
            progress, epoch = None, 0
            while True:
                await asyncio.sleep(_LOOK_EACH_S)
                lead, now = self._lead, time.monotonic()
                if not lead.ready:
                    progress, self.figures, self.numbers = None, "", {}
                    continue
                if progress is None or epoch != lead.history.epoch:
                    progress = Progress(lead.spec.step_limit_s, now)
                    epoch = lead.history.epoch
                counted = await self._steps(client)
                reason = progress.seen(counted, lead.requests.count, time.monotonic())
                if reason and epoch == lead.history.epoch:
                    lead.abandon_epoch(reason)

    async def answered(self) -> None:
        """Returns once the engine has computed a token; raises RunnerError where it will not."""
        async with self._client() as client:
            while not await self._healthy(client):  # noqa: ASYNC110 (another process's)
                await asyncio.sleep(_LOOK_EACH_S / 2)
            self._engine.max_model_len = await self._longest(client)
            question = {
                "model": self._lead.spec.deployment_name,
                "prompt": "The",
                "max_tokens": 1,
                "temperature": 0,
            }
            try:
                answer = await client.post(COMPLETIONS, json=question, timeout=_FIRST_TOKEN_S)
            except httpx.HTTPError as error:
                raise RunnerError(f"the engine's first token did not come: {error!r}") from error
            if not answer.is_success:
                said = " ".join(answer.text.split())[:300]
                raise RunnerError(f"the engine answers the first question with {said}")

    def _client(self) -> httpx.AsyncClient:
        url = self._engine.upstream.url
        return httpx.AsyncClient(base_url=url, timeout=_ANSWER_S, trust_env=False)

    async def _steps(self, client: httpx.AsyncClient) -> float | None:
        try:
            answer = await client.get("/metrics")
        except httpx.HTTPError:
            return None
        self.figures, self.numbers = answer.text, figures(answer.text)
        return self.numbers.get(STEPS, 0.0)

    async def _healthy(self, client: httpx.AsyncClient) -> bool:
        try:
            return (await client.get("/health")).is_success
        except httpx.HTTPError:
            return False

    async def _longest(self, client: httpx.AsyncClient) -> int:
        try:
            answer = await client.get("/v1/models")
            return int(answer.json()["data"][0]["max_model_len"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise RunnerError(f"the engine does not say its longest request: {error!r}") from error
