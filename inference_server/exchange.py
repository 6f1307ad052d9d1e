"""One question to one block: its replica, its cost, its row in the request log."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from starlette.requests import ClientDisconnect

from inference_server.blocks.aliases import Choice
from inference_server.blocks.attempts import Attempts
from inference_server.blocks.block import Block
from inference_server.keys.access import Caller
from inference_server.request_log import MAX_TEXT, LogRow, RequestLog
from web.answer import Answer
from web.carry import Carrier
from web.errors import ApiError

OK, FAILED, CANCELLED = "ok", "failed", "cancelled"
TOO_LATE = "deadline_exceeded"
# Of a question whose answer was given up before anybody counted: about what English text has.
CHARACTERS_PER_TOKEN = 4


class Exchange:
    """From `ask` to `finish`, which is to be called once, whatever happens. The row tells the
    block that answered, where the choice has several."""

    def __init__(
        self,
        choice: Choice,
        caller: Caller,
        carrier: Carrier,
        log: RequestLog | None,
        row: LogRow,
    ) -> None:
        self._choice, self.row = choice, row
        self._carrier = carrier
        self._caller, self._log = caller, log
        self._attempts: Attempts | None = None
        self._question: dict[str, Any] = {}
        self._counted = False
        self._began = time.monotonic()
        row.started = time.time()

    async def ask(self, path: str, document: dict[str, Any], affinity: str) -> Answer:
        """What the block answers, its refusals too. Raises ApiError."""
        self._question = document
        choice = self._choice
        self._attempts = Attempts(
            choice.blocks, affinity, aliased=choice.aliased, patience_s=choice.patience_s
        )
        answer = await self._carrier.ask(self._attempts, path, document)
        self.row.status = answer.status
        if answer.events is None:
            self.answer_began()
        return answer

    @property
    def block(self) -> Block:
        """The one that was asked last, before that the one to be asked first."""
        return self._choice.blocks[0] if self._attempts is None else self._attempts.block

    def answer_began(self) -> None:
        """The whole answer, or a stream's first event, is there; later calls change nothing."""
        if self.row.first_s is None:
            self.row.first_s = time.monotonic() - self._began

    def count(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        self.row.prompt_tokens, self.row.completion_tokens = prompt_tokens, completion_tokens
        self._counted = prompt_tokens is not None
        self._caller.charge((prompt_tokens or 0) + (completion_tokens or 0))

    def count_usage(self, *usages: object) -> None:
        """As `count`, the sum of OpenAI usage objects."""
        known = [usage for usage in usages if isinstance(usage, dict)]
        if known:
            self.count(_sum(known, "prompt_tokens"), _sum(known, "completion_tokens"))

    def failed(self, error: BaseException) -> None:
        """`finish`, of what went wrong."""
        if isinstance(error, ApiError):
            self.row.status = error.status
            self.finish(FAILED, str(error.body["error"].get("code") or ""))
        elif isinstance(error, asyncio.CancelledError | ClientDisconnect):
            self.finish(CANCELLED)
        else:
            self.finish(FAILED, "internal")

    def too_late(self) -> None:
        """`finish`, of what the deadline ended."""
        self.row.status = self.row.status or 504
        self.finish(FAILED, TOO_LATE)

    def finish(self, outcome: str, code: str | None = None) -> None:
        if self._attempts is not None:
            self._attempts.release()
            self.row.block_id = self._attempts.block.block_id
            if self.row.status is not None:
                self.row.replica = self._attempts.url
        self.row.duration_s = time.monotonic() - self._began
        self.row.outcome, self.row.code = outcome, code or None
        if not self._counted and (outcome == CANCELLED or code == TOO_LATE):
            # Who hangs up early, or allows no time, has had the prompt computed all the same.
            text = json.dumps(self._question, ensure_ascii=False)
            self._caller.charge(len(text) // CHARACTERS_PER_TOKEN)
        for name in ("question", "answer"):
            text = getattr(self.row, name)
            setattr(self.row, name, text and text[:MAX_TEXT])
        if self._log is not None:
            self._log.add(self.row)


def _sum(usages: list[dict[str, Any]], name: str) -> int | None:
    counts = [count for usage in usages if isinstance(count := usage.get(name), int)]
    return sum(counts) if counts else None
