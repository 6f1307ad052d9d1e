"""The chat of one request: a session's history, and the turns that the request adds to it."""

from __future__ import annotations

from proxy_block.block_input import Question
from proxy_block.context_window import ContextWindow, is_too_long, turn_tokens
from proxy_block.master_client import Master, Reply, UpstreamRefused
from proxy_block.session import Exchange, Session, Turn


class Chat:
    """Nothing of it is kept unless its `exchange` is recorded."""

    def __init__(self, session: Session, master: Master, window: ContextWindow) -> None:
        self._master, self._window = master, window
        self._system_message = session.system_message
        self._turns = session.turns
        self._added = 0

    async def ask(self, question: Question) -> Reply:
        """Oldest turns are left out, for good, where prompt and answer would not fit the model.

        Raises UpstreamRefused and ApiError.
        """
        if question.system_message is not None:
            self._system_message = question.system_message
        config = self._master.config(question)
        turns = await self._window.fitting(self._turns, question.message, config)
        reply, turns = await self._ask(question, turns)
        tokens = turn_tokens(question.message, reply.text, reply.usage, turns)
        self._added = min(self._added, len(turns)) + 1
        self._turns = (*turns, Turn(question.message, reply.text, tokens))
        return reply

    def exchange(self, seq_no: int, answer: object) -> Exchange:
        """What the request adds to its session."""
        kept = len(self._turns) - self._added
        if not self._added:
            return Exchange(seq_no, answer)
        return Exchange(seq_no, answer, self._turns[kept:], kept, self._system_message)

    async def _ask(
        self, question: Question, turns: tuple[Turn, ...]
    ) -> tuple[Reply, tuple[Turn, ...]]:
        """The reply and the turns it was given with.

        What was counted of a history may be too little. A refusal costs the master next to
        nothing, so that turns are dropped one, two, four at a time until it takes the rest.
        """
        dropped = 1
        while True:
            try:
                return await self._master.ask(question, self._system_message, turns), turns
            except UpstreamRefused as refused:
                if not turns or not is_too_long(refused.answer):
                    raise
            self._window.refused()
            turns = turns[dropped:]
            dropped *= 2
