"""Users of a soak: what they ask at random, and what is wrong with the answer they got."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx

from benchmarks.running_stack import BLOCK

Body: TypeAlias = dict[str, Any]
SECOND_BLOCK = "pytorch-block-4"
TOKENS = 40
# As long as the stack gives a request.
DEADLINE_S = 600.0
MOST_REFUSALS = 20
SUBJECTS = (
    "Tell me about the sea.",
    "What is a river?",
    "Write a sentence about bread.",
    "Describe an old library.",
    "Why do planets move?",
    "Name three colours and say why you like them.",
)
TALK = ("My name is Ada.", "What is a prime number?", "What was my name?")
# Each with the status that it must get, whatever has just been killed.
BAD: tuple[tuple[str, Body | bytes, int], ...] = (
    ("/v1/chat/completions", b"{", 400),
    ("/v1/chat/completions", {"model": BLOCK, "messages": []}, 400),
    ("/v1/chat/completions", {"model": BLOCK, "messages": [{"role": "user"}]}, 400),
    ("/v1/completions", {"model": BLOCK, "prompt": "a", "n": 10**9}, 400),
    ("/v1/completions", {"model": BLOCK, "prompt": "a", "temperature": "hot"}, 400),
    ("/v1/completions", {"model": BLOCK, "prompt": "a", "carry": {"ids": [[1]]}}, 400),
    ("/v1/completions", {"model": "nobody", "prompt": "a"}, 404),
    ("/v1/infer", {"model": BLOCK, "session_id": "bad", "seq_no": -1, "data": {}}, 400),
)


@dataclass
class Outcome:
    """One request. `failure` says why it is one, `wrong` how its text differs; "" where right.
    `refused` counts how often it was to come again, and did."""

    kind: str
    failure: str = ""
    wrong: str = ""
    pauses_s: list[float] = field(default_factory=list)
    refused: int = 0


class Refused(Exception):
    """503 with Retry-After: nobody has taken the request."""


@dataclass
class Streamed:
    """What came of a stream, and the seconds that each event was waited for."""

    text: str = ""
    failure: str = ""
    waits_s: list[float] = field(default_factory=list)
    usage: Body | None = None
    done: bool = False


class Users:
    """`random` decides everything. Texts are compared with those of `learn`, asked undisturbed."""

    def __init__(self, client: httpx.AsyncClient, choose: random.Random) -> None:
        self._client, self._random = client, choose
        self._expected: dict[str, Any] = {}
        self._session = 0
        self._kinds: dict[str, Callable[[], Awaitable[Outcome]]] = {
            "chat": self._chat,
            "completion": self._completion,
            "unseeded": self._unseeded,
            "session": self._talk,
            "graph": self._graph,
            "leaves": self._leave,
            "bad body": self._bad,
        }

    async def learn(self) -> None:
        """What every comparable question is answered."""
        for path, body in self._repeatable():
            whole = await self._post(path, body)
            self._expected[_key(path, body)] = whole["choices"]
        self._expected["talk"] = await self._talk_through("learned")
        self._expected["graph"] = await self._through_graph("learned-graph")

    async def one(self) -> Outcome:
        """A random request, to its end."""
        kind = self._random.choice(list(self._kinds))
        for refused in range(MOST_REFUSALS):
            try:
                outcome = await self._kinds[kind]()
            except Refused:
                await asyncio.sleep(1)
                continue
            except (httpx.HTTPError, KeyError, ValueError) as error:
                outcome = Outcome(kind, failure=f"{type(error).__name__}: {error}")
            outcome.refused = refused
            return outcome
        return Outcome(kind, failure="refused again and again", refused=MOST_REFUSALS)

    # Kinds of requests

    async def _chat(self) -> Outcome:
        return await self._compared("chat", chat_body(self._random.randrange(len(SUBJECTS))))

    async def _completion(self) -> Outcome:
        number = self._random.randrange(len(SUBJECTS))
        return await self._compared("completion", completion_body(number))

    async def _compared(self, kind: str, body: Body) -> Outcome:
        path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        expected = self._expected[_key(path, body)]
        if self._random.random() < 0.3:
            choices = (await self._post(path, body))["choices"]
            wrong = "" if choices == expected else f"{choices} instead of {expected}"
            return Outcome(kind, wrong=wrong)
        got = await self._stream(path, body)
        wanted = _text(expected[0])
        wrong = "" if got.text == wanted or got.failure else f"{got.text!r} instead of {wanted!r}"
        return Outcome(kind, got.failure, wrong, got.waits_s)

    async def _unseeded(self) -> Outcome:
        body = chat_body(self._random.randrange(len(SUBJECTS))) | {"temperature": 1.0}
        body.pop("seed", None)
        got = await self._stream("/v1/chat/completions", body | {"ignore_eos": True})
        counted = (got.usage or {}).get("completion_tokens")
        wrong = "" if got.failure or counted == TOKENS else f"usage says {counted} tokens"
        return Outcome("unseeded", got.failure, wrong, got.waits_s)

    async def _talk(self) -> Outcome:
        self._session += 1
        said, expected = await self._talk_through(f"talk-{self._session}"), self._expected["talk"]
        return Outcome("session", wrong="" if said == expected else f"{said} instead of {expected}")

    async def _graph(self) -> Outcome:
        self._session += 1
        said = await self._through_graph(f"graph-{self._session}")
        expected = self._expected["graph"]
        return Outcome("graph", wrong="" if said == expected else f"{said} instead of {expected}")

    async def _leave(self) -> Outcome:
        """A client that hangs up after some events."""
        body, left = completion_body(0) | {"max_tokens": 500}, self._random.randrange(1, 8)
        async for _ in self._events("/v1/completions", body):
            left -= 1
            if not left:
                break
        return Outcome("leaves")

    async def _bad(self) -> Outcome:
        path, body, status = self._random.choice(BAD)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self._client.post(path, content=content)
        _check_taken(answer)
        wrong = "" if answer.status_code == status else f"{answer.status_code}: {answer.text[:200]}"
        return Outcome("bad body", wrong=wrong)

    # How they are asked

    def _repeatable(self) -> list[tuple[str, Body]]:
        numbers = range(len(SUBJECTS))
        return [
            *(("/v1/chat/completions", chat_body(number)) for number in numbers),
            *(("/v1/completions", completion_body(number)) for number in numbers),
        ]

    async def _talk_through(self, session: str) -> list[Body]:
        said = []
        for number, message in enumerate(TALK):
            said.append(await self._infer(session, number, {"mode": "chat", "message": message}))
            if not number:  # the same question again gets the recorded answer
                again = {"mode": "chat", "message": message}
                said.append(await self._infer(session, number, again))
        return said

    async def _through_graph(self, session: str) -> Body:
        data = {"mode": "chat", "message": SUBJECTS[0]}
        return await self._infer(session, 1, data, graph={BLOCK: [SECOND_BLOCK], SECOND_BLOCK: []})

    async def _infer(self, session: str, seq_no: int, data: Body, **more: Any) -> Body:
        body = {"model": BLOCK, "session_id": session, "seq_no": seq_no, "data": data, **more}
        answered: Body = (await self._post("/v1/infer", body))["data"]
        # How much of its prompt was computed before hangs on what was asked meanwhile.
        (answered.get("usage") or {}).pop("prompt_tokens_details", None)
        return answered

    async def _post(self, path: str, body: Body) -> Body:
        answer = await self._client.post(path, json=body)
        _check_taken(answer)
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"{path}: {answer.status_code} {answer.text[:300]}")
        document: Body = answer.json()
        return document

    async def _stream(self, path: str, body: Body) -> Streamed:
        got, last = Streamed(), time.monotonic()
        asked = body | {"stream_options": {"include_usage": True}}
        async for event in self._events(path, asked):
            now = time.monotonic()
            got.waits_s.append(now - last)
            last = now
            if "error" in event:
                got.failure = str(event["error"])
            got.usage = event.get("usage") or got.usage
            got.text += "".join(_text(choice) for choice in event.get("choices", ()))
            got.done = got.done or "done" in event
        if not got.done and not got.failure:
            got.failure = "the stream ended without [DONE]"
        return got

    async def _events(self, path: str, body: Body) -> AsyncIterator[Body]:
        async with self._client.stream("POST", path, json=body | {"stream": True}) as answer:
            _check_taken(answer)
            if answer.status_code != httpx.codes.OK:
                yield {"error": (await answer.aread()).decode()[:300]}
                return
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    yield {"done": True}
                elif line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


async def keep_asking(users: Users, until: float, outcomes: list[Outcome]) -> None:
    """One user, until so many seconds of the event loop's clock."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        outcomes.append(await users.one())
        if outcomes[-1].failure or outcomes[-1].wrong:
            print("!", outcomes[-1].kind, outcomes[-1].failure or outcomes[-1].wrong, flush=True)


def chat_body(number: int) -> Body:
    """Greedy where the number is even, else sampled with a seed."""
    asked: Body = {
        "model": BLOCK,
        "messages": [{"role": "user", "content": SUBJECTS[number]}],
        "max_tokens": TOKENS,
    }
    return asked | _sampling(number)


def completion_body(number: int) -> Body:
    asked: Body = {"model": BLOCK, "prompt": SUBJECTS[number], "max_tokens": TOKENS}
    return asked | {"ignore_eos": True} | _sampling(number)


def _sampling(number: int) -> Body:
    return {"temperature": 0.9, "top_p": 0.95, "seed": number} if number % 2 else {"temperature": 0}


def _check_taken(answer: httpx.Response) -> None:
    """Raises Refused."""
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "retry-after" in answer.headers:
        raise Refused


def _text(choice: Body) -> str:
    """Of a whole choice or a chunk's, chat's or completion's."""
    message = choice.get("message") or choice.get("delta") or {}
    return choice.get("text") or message.get("content") or ""


def _key(path: str, body: Body) -> str:
    return path + json.dumps(body, sort_keys=True)
