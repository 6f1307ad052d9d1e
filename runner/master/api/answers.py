"""Generated text as an answer, whole or event by event, in OpenAI's shapes or another."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, closing
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runner.master.api.errors import failure_body
from runner.master.api.id_lines import IdLines, asked_lines
from runner.master.api.openai_bodies import OpenAIBody
from runner.master.api.prompts import Prompts
from runner.master.api.served_models import ServedModel, entering
from runner.master.engine.requests import TokenEvent
from runner.master.text.choice import TextPiece, TextRequest, joined
from runner.master.text.model_text import ModelText, TokenBytes
from runner.master.text.streams import TextStream
from web.deadline import remaining_s
from web.disconnect import until_disconnected
from web.events import ADMITTED, DONE, LAST_SEND_S, Events, EventStream
from web.events import event as encoded

Document = dict[str, Any]
Asked = TypeVar("Asked", bound=OpenAIBody)
# OpenAI's documented stand-in for "so unlikely that it has no number"; JSON has no infinity.
_LEAST = -9999.0


class Answer(Protocol):
    """What one endpoint makes of the text of one request's choices."""

    def whole(self, choices: Sequence[TextPiece]) -> Document:
        """The body, of every choice as one piece."""

    def chunks(self, piece: TextPiece) -> Iterable[Document]:
        """The events of a stream that a piece makes."""

    def last(self) -> Iterable[Document]:
        """What a stream ends with once all pieces have come."""


async def answer_openai(
    request: Request,
    body: Asked,
    judge: Callable[[Prompts, Asked], Awaitable[list[TextRequest]]],
    make: Callable[[Asked, Sequence[TextRequest], ModelText], OpenAIAnswer],
) -> Response:
    """`judge` makes requests of the body, `make` an answer of what they become."""
    async with entering(request) as model:
        requests = await judge(model.prompts, body)
        answer = make(body, requests, model.text)
        lines = asked_lines(request, body, requests, answer.head, request.app.state.engine)
        text = begin(request, model, requests)
    deadline_s = model.spec.request_deadline_s
    return await respond(request, text, answer, deadline_s, stream=body.stream, lines=lines)


def begin(request: Request, model: ServedModel, requests: Sequence[TextRequest]) -> TextStream:
    """Enter them; whoever gets the stream closes it. Raises what Engine.generate does."""
    state = request.app.state
    return TextStream(state.engine, model.text, state.models.metrics, requests)


async def respond(
    request: Request,
    text: TextStream,
    answer: Answer,
    deadline_s: float,
    *,
    stream: bool,
    lines: IdLines | None = None,
) -> Response:
    """Answer with what comes. Raises what the engine's tokens do, and ClientDisconnect.

    With `lines` a whole answer is a stream too, of one event.
    """
    if stream:
        _pass_over(text.requests, answer)
    if stream or lines is not None:
        return event_stream(text, answer, deadline_s, whole=not stream, lines=lines)
    with closing(text):
        choices = await until_disconnected(request.receive, text.collect())
    return JSONResponse(answer.whole(choices))


def _pass_over(requests: Sequence[TextRequest], answer: Answer) -> None:
    """Make the chunks that were delivered before, for all that those to come go on from."""
    for request in requests:
        for piece in request.delivered:
            for _ in answer.chunks(piece):
                pass


async def _chunks(text: TextStream, answer: Answer, lines: IdLines | None) -> Events:
    """The events of one piece, and the line that confirms them, as one.

    What has no id of its own (a prompt that is told) comes with the choice's next ids: the line of
    another choice would confirm it, and after a carry it would be told again.
    """
    held: dict[int, bytes] = {}
    async with aclosing(text.pieces()) as pieces:
        async for piece in pieces:
            events = held.pop(piece.index, b"") + b"".join(map(encoded, answer.chunks(piece)))
            line = b"" if lines is None else lines.after(piece)
            if line or lines is None or piece.finish_reason is not None:
                yield events + line
            else:
                held[piece.index] = events
    for document in answer.last():
        yield encoded(document)


async def _whole(text: TextStream, answer: Answer, lines: IdLines | None) -> Events:
    parts = text.parts()
    async with aclosing(text.pieces()) as pieces:
        async for piece in pieces:
            parts[piece.index].append(piece)
            if lines is not None:
                yield lines.after(piece)
    yield encoded(answer.whole([joined(of_one) for of_one in parts]))


def event_stream(
    text: TextStream,
    answer: Answer,
    deadline_s: float,
    *,
    whole: bool = False,
    lines: IdLines | None = None,
) -> EventStream:
    """Each document as an event, then `[DONE]`; the headers at once, as `text` is entered.

    An error is an event of its own, {"error": ...}, without `[DONE]`. The engine keeps the
    deadline, `deadline_s` seconds or the client's own; who has not read LAST_SEND_S later what it
    said is given up.
    """
    said = (_whole if whole else _chunks)(text, answer, lines)
    events = _to_the_end(said, ADMITTED if lines is None else lines.opening)

    async def close() -> None:
        await events.aclose()
        text.close()

    deadline = asyncio.get_running_loop().time() + remaining_s(deadline_s) + LAST_SEND_S
    return EventStream(events, close=close, deadline=deadline)


async def _to_the_end(said: Events, opening: bytes) -> Events:
    yield opening
    async with aclosing(said):
        try:
            async for events in said:
                yield events
        except Exception as error:
            yield encoded(failure_body(error))
        else:
            yield DONE


class OpenAIAnswer(ABC):
    """An answer in OpenAI's shape. With include_usage each chunk says `usage: null`, and a last
    one without choices says the sum; with continuous_usage_stats each says what it is so far."""

    def __init__(
        self, body: OpenAIBody, requests: Sequence[TextRequest], kind: str, prefix: str
    ) -> None:
        # Equal in all chunks of one stream, also after it was carried.
        told = body.carry and body.carry.beginning
        self._head = {
            "id": told.id if told else f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": told.created if told else int(time.time()),
            "model": body.model,
        }
        self._include_usage, self._continuous_usage = body.include_usage, body.continuous_usage
        self._prompt_tokens = prompt_tokens(requests, body.n)
        self._choices = body.n
        # Of the choices that have begun.
        self._tokens: dict[int, int] = {}
        self._reused: dict[int, int] = {}

    @property
    def head(self) -> Document:
        """What every chunk of this answer begins with."""
        return self._head

    @abstractmethod
    def choice(self, piece: TextPiece) -> Document:
        """One choice of a whole answer."""

    @abstractmethod
    def deltas(self, piece: TextPiece, *, begins: bool) -> Iterable[Document]:
        """A piece as choices of chunks; `begins` with the first piece of a choice."""

    def whole(self, choices: Sequence[TextPiece]) -> Document:
        for piece in choices:
            self._count(piece)
        return {
            **self._head,
            "choices": [self.choice(piece) for piece in choices],
            "usage": self._usage(),
        }

    def chunks(self, piece: TextPiece) -> Iterable[Document]:
        begins = piece.index not in self._tokens
        self._count(piece)
        for delta in self.deltas(piece, begins=begins):
            chunk = {**self._head, "choices": [delta]}
            if self._continuous_usage:
                chunk["usage"] = self._usage()
            elif self._include_usage:
                chunk["usage"] = None
            yield chunk

    def last(self) -> Iterable[Document]:
        if self._include_usage:
            yield {**self._head, "choices": [], "usage": self._usage()}

    def _count(self, piece: TextPiece) -> None:
        self._tokens[piece.index] = piece.tokens
        if piece.index % self._choices == 0:
            self._reused[piece.index] = piece.reused

    def _usage(self) -> Document:
        reused = sum(self._reused.values())
        return usage(self._prompt_tokens, sum(self._tokens.values()), reused)


def prompt_tokens(requests: Sequence[TextRequest], choices: int) -> int:
    """Each prompt counted once, whatever the number of its `choices`."""
    return sum(len(request.generation.prompt_ids) for request in requests[::choices])


def usage(prompt_tokens: int, completion_tokens: int, reused: int) -> Document:
    """`reused` counts the prompts' tokens that the first choice of each did not compute."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def chat_logprobs(events: Sequence[TokenEvent], token_bytes: TokenBytes) -> dict[str, Any]:
    """`choices[].logprobs` of a chat completion: one entry for each token, best first."""
    return {
        "content": [
            {
                **_chat_entry(event.token_id, event.logprob, token_bytes),
                "top_logprobs": [
                    _chat_entry(token_id, logprob, token_bytes)
                    for token_id, logprob in event.alternatives
                ],
            }
            for event in events
        ],
        "refusal": None,
    }


def completion_logprobs(
    events: Sequence[TokenEvent], token_bytes: TokenBytes, offsets: Sequence[int]
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion; `offsets` say where each token lies in the text.

    `top_logprobs` have the token itself beside the best ones, where it is none of them. A prompt's
    first id has null.
    """
    best = [_best(event, token_bytes) for event in events]
    return {
        "tokens": [_token(event.token_id, token_bytes) for event in events],
        "token_logprobs": [
            None if event.logprob is None else _finite(event.logprob) for event in events
        ],
        "top_logprobs": best if any(event.alternatives for event in events) else None,
        "text_offset": list(offsets),
    }


def _best(event: TokenEvent, token_bytes: TokenBytes) -> dict[str, float] | None:
    """By text; of several ids with one text, as parts of a character have, the likeliest."""
    if event.logprob is None:
        return None
    found: dict[str, float] = {}
    for token_id, logprob in (*event.alternatives, (event.token_id, event.logprob)):
        found.setdefault(_token(token_id, token_bytes), _finite(logprob))
    return found


def _chat_entry(token_id: int, logprob: float | None, token_bytes: TokenBytes) -> dict[str, Any]:
    raw = token_bytes.of(token_id)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(raw),
    }


def _token(token_id: int, token_bytes: TokenBytes) -> str:
    return token_bytes.of(token_id).decode("utf-8", "replace")


def _finite(logprob: float | None) -> float:
    return _LEAST if logprob is None or logprob < _LEAST else logprob
