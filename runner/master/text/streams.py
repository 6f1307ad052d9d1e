"""From the engine's token events to text as it comes: one choice, or several side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from runner.errors import RunnerError
from runner.master.engine.engine import Engine
from runner.master.metrics import Metrics
from runner.master.text.choice import ChoiceText, TextPiece, TextRequest
from runner.master.text.model_text import ModelText

Pieces = AsyncGenerator[TextPiece, None]


def text_pieces(
    engine: Engine, text: ModelText, metrics: Metrics, requests: Sequence[TextRequest]
) -> Pieces:
    """Pieces of all choices as they come; the first error ends them all.

    Closing the generator ends the generation, a stop string that of its choice. Raises what
    Engine.generate does.
    """
    sources = [_pieces_of_one(engine, text, metrics, request) for request in requests]
    return sources[0] if len(sources) == 1 else _merged(sources)


async def _pieces_of_one(
    engine: Engine, text: ModelText, metrics: Metrics, request: TextRequest
) -> Pieces:
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


async def _merged(sources: Sequence[Pieces]) -> Pieces:
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


async def collect(pieces: Pieces, choices: int) -> list[TextPiece]:
    """Every choice as one piece, in order."""
    parts: list[list[TextPiece]] = [[] for _ in range(choices)]
    async with aclosing(pieces):
        async for piece in pieces:
            parts[piece.index].append(piece)
    return [
        TextPiece(
            index,
            "".join(part.text for part in of_one),
            tuple(event for part in of_one for event in part.events),
            of_one[-1].tokens,
            of_one[-1].finish_reason,
        )
        for index, of_one in enumerate(parts)
    ]
