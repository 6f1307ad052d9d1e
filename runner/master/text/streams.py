"""From the engine's token events to text: one generation, or several side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from runner.errors import RunnerError
from runner.master.engine.requests import GenerationRequest, TokenEvent
from runner.master.metrics import Metrics
from runner.master.text.choice import ChoiceText, TextPiece, TextRequest
from runner.master.text.model_text import ModelText

Pieces = AsyncGenerator[TextPiece, None]


class TokenSource(Protocol):
    """What text generation needs of the engine."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]: ...


async def text_pieces(
    engine: TokenSource, text: ModelText, request: TextRequest, metrics: Metrics
) -> Pieces:
    """Pieces of one choice. Closing the generator ends the generation; so does a stop string."""
    choice = ChoiceText(text, request)
    timer = metrics.start_request(len(request.generation.prompt_ids))
    try:
        async with aclosing(engine.generate(request.generation)) as events:
            async for event in events:
                timer.token()
                piece = choice.push(event)
                if piece is None:
                    continue
                if piece.finish_reason is not None:
                    # The place is freed before the last piece is sent to a client that may be slow.
                    await events.aclose()
                    timer.finish(piece.finish_reason)
                yield piece
                if piece.finish_reason is not None:
                    return
    except RunnerError:
        timer.finish("error")
        raise
    finally:
        timer.finish("abort")


async def merged(sources: Sequence[Pieces]) -> Pieces:
    """The pieces of several choices as they come; the first error ends them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for piece in source:
                yield piece
        return
    arrived: asyncio.Queue[TextPiece | Exception | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(source, arrived)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(source: Pieces, arrived: asyncio.Queue[TextPiece | Exception | None]) -> None:
    async with aclosing(source):
        try:
            async for piece in source:
                arrived.put_nowait(piece)
            arrived.put_nowait(None)
        except Exception as error:  # the reader raises it
            arrived.put_nowait(error)


@dataclass(slots=True)
class FinishedText:
    """One choice, whole."""

    text: str = ""
    events: list[TokenEvent] = field(default_factory=list)
    tokens: int = 0
    finish_reason: str | None = None


async def collect(pieces: Pieces, choices: int) -> list[FinishedText]:
    """Every choice, in order."""
    finished = [FinishedText() for _ in range(choices)]
    async with aclosing(pieces):
        async for piece in pieces:
            one = finished[piece.index]
            one.text += piece.text
            one.events += piece.events
            one.tokens, one.finish_reason = piece.tokens, piece.finish_reason
    return finished
