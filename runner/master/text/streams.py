"""From the engine's token events to text as it comes: one choice, or several side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from runner.errors import RunnerError
from runner.master.engine.engine import Engine
from runner.master.engine.requests import PromptEvent
from runner.master.metrics import Metrics
from runner.master.text.choice import ChoiceText, TextPiece, TextRequest, joined
from runner.master.text.model_text import ModelText

Pieces = AsyncGenerator[TextPiece, None]


class TextStream:
    """The text of one request's choices, all of them entered in the engine but those which the ids
    that were delivered before have finished.

    Raises what Engine.generate does; then none is entered. Whoever holds one closes it, also where
    no piece was ever asked for: that frees the places of all choices at once.
    """

    def __init__(
        self, engine: Engine, text: ModelText, metrics: Metrics, requests: Sequence[TextRequest]
    ) -> None:
        self.requests = requests
        self._choices: list[_Choice] = []
        try:
            for request in requests:
                if request.begun is not None and request.begun.finished:
                    continue
                self._choices.append(_Choice(engine, text, metrics, request))
        except BaseException:
            self.close()
            raise

    def pieces(self) -> Pieces:
        """The new ones of all choices as they come, once; the first error ends them all."""
        sources = [choice.pieces() for choice in self._choices]
        return sources[0] if len(sources) == 1 else _merged(sources)

    def parts(self) -> list[list[TextPiece]]:
        """By choice, what was delivered before; those of `pieces` go on from there."""
        return [list(request.delivered) for request in self.requests]

    async def collect(self) -> list[TextPiece]:
        """Every choice as one piece, in order, with what was delivered before."""
        parts = self.parts()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                parts[piece.index].append(piece)
        return [joined(of_one) for of_one in parts]

    def close(self) -> None:
        for choice in self._choices:
            choice.close()


class _Choice:
    """One choice. A stop string ends its generation."""

    def __init__(
        self, engine: Engine, text: ModelText, metrics: Metrics, request: TextRequest
    ) -> None:
        self._text = request.begun or ChoiceText(text, request)
        self._timer = metrics.start_request(len(request.generation.prompt_ids))
        try:
            self._tokens = engine.generate(request.generation)
        except RunnerError:
            self._timer.finish("error")
            raise

    async def pieces(self) -> Pieces:
        try:
            async for event in self._tokens:
                self._text.reused = self._tokens.reused()
                if isinstance(event, PromptEvent):
                    piece: TextPiece | None = self._text.prompt(event)
                else:
                    self._timer.token()
                    piece = self._text.push(event)
                if piece is None:
                    continue
                if piece.finish_reason is not None:
                    # The place is freed before the last piece is sent to a client that may be slow.
                    self._tokens.close()
                    self._timer.finish(piece.finish_reason)
                yield piece
                if piece.finish_reason is not None:
                    return
        except RunnerError:
            self._timer.finish("error")
            raise
        finally:
            self.close()

    def close(self) -> None:
        self._tokens.close()
        self._timer.finish("abort")


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
