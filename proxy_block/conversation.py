"""One block request: its questions asked of the master, its answer recorded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

from proxy_block.block_request import CHAT, BlockRequest, Input, Question, questions
from proxy_block.context_window import ContextWindow, is_too_long, turn_tokens
from proxy_block.master_client import Master, Reply, UpstreamRefused
from proxy_block.session import Exchange, SeqNoPassed, Session, Turn
from proxy_block.stores.interface import SessionStore
from proxy_block.stores.patient_store import PatientStore
from web import deadline
from web.errors import ApiError

# Completions of one batch that are asked at the same time.
BATCH_PARALLEL = 8
SEQ_NO_PASSED = "seq_no_passed"


class Chat:
    """The chat of one request: a session's history, and the turns that the request adds to it.

    Nothing of it is kept unless its `exchange` is recorded.
    """

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
        kept = reply.reasoning if await self._window.keeps_reasoning() else ""
        left_out = "" if kept else reply.reasoning
        tokens = turn_tokens(question.message, reply.text, left_out, reply.usage, turns)
        self._added = min(self._added, len(turns)) + 1
        self._turns = (*turns, Turn(question.message, reply.text, tokens, kept))
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


class Conversations:
    """Answers block requests, those of one session one after the other, each seq_no once.

    That holds for completions too: they leave the history alone, but a seq_no counts the requests
    of its session whatever they ask.
    """

    def __init__(self, master: Master, store: SessionStore, deadline_s: float) -> None:
        self._master, self._store, self._deadline_s = master, store, deadline_s
        self._window = ContextWindow(master.upstream)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def answer(self, request: BlockRequest, *, again: bool = False) -> Any:
        """The reply's `data`. Raises UpstreamRefused, ApiError and StoreUnavailable.

        `again`: the process that had this request is gone. A store that is gone is waited for.
        """
        store = PatientStore(self._store)
        try:
            async with asyncio.timeout(deadline.remaining_s(self._deadline_s)):
                async with self._alone(store, request, again):
                    return await self._answer(store, request)
        except TimeoutError as error:
            if store.failure is not None:
                raise store.failure from error
            raise deadline.too_late(self._master.upstream.name, self._deadline_s) from error

    async def reset(self, session_id: str | None) -> int:
        """How many sessions there were; a request that runs will begin a new one."""
        return await self._store.reset(session_id)

    @contextlib.asynccontextmanager
    async def _alone(
        self, store: PatientStore, request: BlockRequest, again: bool
    ) -> AsyncIterator[None]:
        """In this process first, in order of arrival, then among those that share the store."""
        session_id = request.session_id
        async with (
            self._locks.setdefault(session_id, asyncio.Lock()),
            store.lease(session_id, request.seq_no, again=again),
        ):
            yield

    async def _answer(self, store: PatientStore, request: BlockRequest) -> Any:
        """Everything is recorded when the last question is answered, nothing before."""
        session = await store.read(request.session_id)
        if _is_passed(session, request.seq_no):
            return _recorded(session, request.seq_no)
        chat = Chat(session, self._master, self._window)
        answer = await self._ask_all(request.asked, chat)
        try:
            await store.record(request.session_id, chat.exchange(request.seq_no, answer))
        except SeqNoPassed:
            return _recorded(await store.read(request.session_id), request.seq_no)
        return answer

    async def _ask_all(self, asked: Input, chat: Chat) -> Any:
        if isinstance(asked, Question):
            return await self._ask(asked, chat)
        every = list(questions(asked))
        places = asyncio.Semaphore(BATCH_PARALLEL)
        answers: dict[str, Any] = {}

        async def ask_in_order(some: Sequence[Question]) -> None:
            for question in some:
                async with places:
                    answers[question.path] = await self._ask_of_batch(question, chat)

        chats = [question for question in every if question.mode == CHAT]
        others = [[question] for question in every if question.mode != CHAT]
        try:
            async with asyncio.TaskGroup() as group:
                for some in (chats, *others):
                    group.create_task(ask_in_order(some))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        return _in_shape(asked, (answers[question.path] for question in every))

    async def _ask(self, question: Question, chat: Chat) -> dict[str, Any]:
        if question.mode == CHAT:
            return _output("reply", await chat.ask(question))
        return _output("generated", await self._master.complete(question))

    async def _ask_of_batch(self, question: Question, chat: Chat) -> dict[str, Any]:
        """As `_ask`, with errors that name the item."""
        try:
            return await self._ask(question, chat)
        except UpstreamRefused as refused:
            raise _named(question, refused) from refused


def _output(name: str, reply: Reply) -> dict[str, Any]:
    beside = {"reasoning_content": reply.reasoning} if reply.reasoning else {}
    return {name: reply.text, **beside, "usage": reply.usage}


def _in_shape(asked: Input, answers: Iterator[Any]) -> Any:
    """The answers nested as the questions were."""
    if isinstance(asked, Question):
        return next(answers)
    return [_in_shape(item, answers) for item in asked]


def _is_passed(session: Session, seq_no: int) -> bool:
    return session.seq_no is not None and seq_no <= session.seq_no


def _recorded(session: Session, seq_no: int) -> Any:
    """What the last request got; raises ApiError 409 for one before it."""
    if seq_no == session.seq_no:
        return session.answer
    rule = (
        f"must be above {session.seq_no}, the last one answered in this session; that one again "
        "gets its recorded answer, and the management action reset starts anew"
    )
    message = f"seq_no = {seq_no}: {rule}"
    raise ApiError(409, message, param="seq_no", code=SEQ_NO_PASSED, value=seq_no)


def _named(question: Question, refused: UpstreamRefused) -> ApiError:
    """The upstream's refusal of one item of a batch."""
    answer = refused.answer
    headers = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    message = answer.error.get("message", f"the engine answered with HTTP {answer.status}")
    text, code = f"{question.path}: {message}", answer.error.get("code")
    return ApiError(answer.status, text, param=question.path, code=code, headers=headers)
