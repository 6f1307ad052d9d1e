"""The comment lines by which a caller can carry a request over this process's death."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from contract.carry import ASKS_FOR_IDS, HEADER, Advance, Beginning, line
from runner.master.api.carried import prompt_digest
from runner.master.api.openai_bodies import OpenAIBody
from runner.master.engine.engine import Engine
from runner.master.text.choice import TextPiece, TextRequest


class IdLines:
    """What one stream says beside its events, to a caller that asked for it.

    `known` counts, by choice, the ids that the caller knows already of those that come now.
    """

    def __init__(self, beginning: Beginning, known: Sequence[int]) -> None:
        self.opening = line(beginning)
        self._known = list(known)

    def after(self, piece: TextPiece) -> bytes:
        """What confirms the events of the piece, right behind them."""
        known = min(self._known[piece.index], len(piece.ids))
        self._known[piece.index] -= known
        ids = piece.ids[known:]
        return line(Advance(piece.index, ids)) if ids else b""


def asked_lines(
    request: Request,
    body: OpenAIBody,
    requests: Sequence[TextRequest],
    head: Mapping[str, Any],
    engine: Engine,
) -> IdLines | None:
    """Those of an answer to `body` that begins with `head`; None where nobody asked."""
    if request.headers.get(HEADER) != ASKS_FOR_IDS:
        return None
    seed = requests[0].generation.sampling.seed
    assert seed is not None
    prompt = prompt_digest(requests, body.n)
    beginning = Beginning(
        head["id"], head["created"], seed, engine.model_commit, prompt, len(requests)
    )
    told = body.carry.ids if body.carry is not None else [()] * len(requests)
    known = [
        len(ids) - len(item.generation.carried.ids) if item.generation.carried else 0
        for ids, item in zip(told, requests, strict=True)
    ]
    return IdLines(beginning, known)
