"""What this rank is told by rank 0's keeper, and what it has its engine do about it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from contract.models import CONFIG
from contract.specs import GroupSpec, KeeperSpec, spec_hash
from runner.errors import RunnerError
from runner.keeper.command import EngineCommand, Meeting, engine_command
from runner.keeper.engine import EngineProcess, clear_shared_memory
from runner.keeper.prepare import PreparedModel, prepare
from runner.models.progress import FetchProgress
from runner.stage.process.control_link import ControlLink
from runner.transport.connection import interface_address
from runner.transport.control import (
    EpochFailed,
    Forget,
    Form,
    Formed,
    GroupMemory,
    Holding,
    Join,
    Leaving,
    Load,
    Loaded,
    LoadFailed,
    Message,
    Prepare,
    Prepared,
    PrepareFailed,
    Progress,
    Released,
    Remember,
    StageInfo,
    Take,
    Taken,
    Welcome,
)

logger = logging.getLogger(__name__)

_REPORT_EACH_S = 1.0
_FLUSH_S = 2.0


@dataclass(frozen=True, slots=True)
class _Held:
    """What the next engine is of."""

    spec: GroupSpec
    model: PreparedModel


class Rank:
    """One rank's engine, whichever epoch it is in. On rank 0 `answers` returns once the engine has
    computed a token; it raises RunnerError where it will not."""

    def __init__(
        self, spec: KeeperSpec, token: bytes, answers: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._spec, self._answers = spec, answers
        self._instance = secrets.token_hex(8)
        # A wrong name is told before anything else.
        self._address = interface_address(spec.interface) if spec.interface else ""
        self._link = ControlLink(
            spec, token, make_join=self._make_join, received=self._received, lost=self._lost
        )
        self._memory: GroupMemory | None = None
        self._alone_since: float | None = None
        self._order: Prepare | None = None
        self._prepared: tuple[Prepare, PreparedModel] | None = None
        self._held: _Held | None = None
        self._wanted: Form | None = None
        self._running: tuple[Form, EngineProcess] | None = None
        self._announcing: asyncio.Task[None] | None = None
        self._change = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.released = asyncio.Event()
        self.registry = CollectorRegistry()
        self.failure, self.welcome = "", False

    def start(self) -> None:
        """Dial rank 0 and do what it says, until `stop`."""
        for work in (self._link.run(), self._keep()):
            self._begin(work)

    async def stop(self) -> None:
        """Nothing of the engine is left afterwards."""
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_engine()

    def leave(self) -> None:
        """SIGTERM: `released` is set once the group does without this rank."""
        if self._link.connected and self._wanted is not None:
            self._link.send(Leaving())
        else:
            self.released.set()

    @property
    def engine_says(self) -> str:
        """Its last line, "" while none runs."""
        return self._running[1].last_line if self._running else ""

    @property
    def deadline_s(self) -> float:
        """The most that a request may still need this rank."""
        return self._held.spec.request_deadline_s if self._held else 0.0

    @property
    def not_ready(self) -> str:
        """As a stage's: ready is what the next epoch can be formed with."""
        if self.failure:
            return self.failure
        return "" if self.welcome else "rank 0 has not let it in yet"

    # What rank 0 says

    def _make_join(self, route: str) -> Join:
        self._address = self._address if self._spec.interface else route
        held = self._held
        return Join(
            instance=self._instance,
            process_id=os.getpid(),
            address=self._address,
            data_port=self._spec.meeting_port,
            node=self._spec.node,
            devices=self._spec.visible_devices or self._spec.device,
            holding=None if held is None else Holding(spec_hash(held.spec), self._info(held)),
            memory=self._memory,
            alone_s=0.0 if self._alone_since is None else time.monotonic() - self._alone_since,
        )

    def _received(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._alone_since, self.welcome = None, True
        elif isinstance(message, Prepare):
            self._prepare(message)
        elif isinstance(message, Forget):
            self._forget(message.spec_hash)
        elif isinstance(message, Load):
            self._load(message.spec_hash)
        elif isinstance(message, Take) and self._held is not None:
            self._held = replace(self._held, spec=message.spec)
            self._link.send(Taken(spec_hash(message.spec)))
        elif isinstance(message, Form):
            self._want(message)
        elif isinstance(message, EpochFailed):
            if self._wanted is not None and self._wanted.counter == message.counter:
                self._want(None)
        elif isinstance(message, Remember):
            self._memory = message.memory
        elif isinstance(message, Released):
            self.released.set()

    def _lost(self, _reason: str) -> None:
        """Without rank 0 there is no group."""
        if self._alone_since is None:
            self._alone_since = time.monotonic()
        self._want(None)
        self.released.set()

    def _prepare(self, order: Prepare) -> None:
        if self._order == order and not self.failure:
            if self._prepared is not None and self._prepared[0] is self._order:
                self._link.send(Prepared(spec_hash(order.spec)))
            return
        self._order, self.failure = order, ""
        self._begin(self._fetch(order))

    async def _fetch(self, order: Prepare) -> None:
        digest, progress = spec_hash(order.spec), FetchProgress()
        held = None if self._held is None else self._held.model
        work = asyncio.create_task(asyncio.to_thread(prepare, self._spec, order, progress, held))
        while not work.done() and order is self._order:
            self._link.send(Progress(digest, progress.fetched_bytes, progress.wanted_bytes))
            await asyncio.wait([work], timeout=_REPORT_EACH_S)
        try:
            model = await work
        except RunnerError as error:
            if order is self._order:
                await self._failed(order, error)
            return
        if order is self._order:
            self._prepared = order, model
            self._link.send(Progress(digest, progress.fetched_bytes, progress.wanted_bytes))
            self._link.send(Prepared(digest))

    async def _failed(self, order: Prepare, error: RunnerError) -> None:
        """Where there is nothing else to serve, whoever keeps this process starts it again."""
        self.failure = str(error)
        logger.error("%s", error)
        self._link.send(PrepareFailed(spec_hash(order.spec), self.failure))
        if order.in_force:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._link.flush(), _FLUSH_S)
            await self._end_engine()
            logging.shutdown()
            os._exit(error.exit_code)

    def _forget(self, digest: str) -> None:
        if self._order is not None and digest in ("", spec_hash(self._order.spec)):
            self._order = self._prepared = None
            self.failure = ""

    def _load(self, digest: str) -> None:
        """Weights come with the engine of the next epoch; here they only become the ones of it."""
        if self._prepared is None or spec_hash(self._prepared[0].spec) != digest:
            self._link.send(LoadFailed(digest, "this spec is not prepared"))
            return
        order, model = self._prepared
        self._want(None)
        self._held = _Held(order.spec, model)
        self._link.send(Loaded(digest, self._info(self._held)))

    def _info(self, held: _Held) -> StageInfo:
        """What only our own stages know is 0."""
        layers = held.spec.ranks[self._spec.rank].layers
        return StageInfo(
            rank=self._spec.rank,
            address="",
            data_port=self._spec.meeting_port,
            layers=layers,
            weight_bytes=0,
            kv_bytes_per_token=0,
            kv_tokens=0,
            hidden_size=0,
            vocab_size=0,
            max_positions=0,
            rope_boundary=None,
            commit=held.model.commit,
            dtype=held.spec.dtype,
            device=self._spec.device,
            process_id=os.getpid(),
        )

    # The engine of the epoch

    def _want(self, form: Form | None) -> None:
        self._wanted = form
        self._change.set()

    async def _keep(self) -> None:
        """Have the engine of the epoch that is wanted, and of no other."""
        while True:
            await self._change.wait()
            self._change.clear()
            if self._running is not None and self._running[0] is not self._wanted:
                await self._end_engine()
            if self._wanted is not None and self._running is None:
                await self._start_engine(self._wanted)

    async def _start_engine(self, form: Form) -> None:
        if self._held is None or spec_hash(self._held.spec) != form.spec_hash:
            self._fail(form, "this spec is not loaded")
            return
        if self._spec.whole_shm:
            clear_shared_memory()
        engine = EngineProcess(
            self._command(self._held, form),
            partial(self._ended, form),
            niceness=self._spec.niceness,
        )
        try:
            await engine.start()
        except OSError as error:
            self._fail(form, f"the engine's warden cannot be started: {error}")
            return
        self._running = form, engine
        self._announcing = asyncio.create_task(self._announce(form))

    def _command(self, held: _Held, form: Form) -> EngineCommand:
        config: dict[str, Any] = json.loads((held.model.folder / CONFIG).read_text("utf-8"))
        return engine_command(
            self._spec,
            held.spec,
            folder=str(Path(held.model.folder)),
            config=config,
            meeting=Meeting(*form.addresses[0]),
            address=self._address,
            inherited=os.environ,
        )

    async def _announce(self, form: Form) -> None:
        if self._answers is not None:
            try:
                await self._answers()
            except RunnerError as error:
                self._fail(form, str(error))
                return
        self._link.send(Formed(form.counter))

    async def _end_engine(self) -> None:
        if self._announcing is not None:
            self._announcing.cancel()
            self._announcing = None
        if self._running is not None:
            running, self._running = self._running, None
            await running[1].stop()

    def _ended(self, form: Form, how: str) -> None:
        logger.error("%s", how)
        if self._running is not None and self._running[0] is form:
            self._running = None
        self._fail(form, how)

    def _fail(self, form: Form, reason: str) -> None:
        self._link.send(EpochFailed(form.counter, reason))
        if self._wanted is form:
            self._want(None)

    def _begin(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("a fault of the keeper's own ends its process", exc_info=error)
            os._exit(1)
