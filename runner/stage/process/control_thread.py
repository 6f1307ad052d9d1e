"""One stage: the compute loop in the main thread, everything it talks to in the control thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NoReturn

from contract.specs import GroupSpec, RankSpec, spec_hash
from runner.stage.process.control_link import ControlLink
from runner.stage.process.epoch_links import Stop
from runner.stage.process.epochs import Epochs
from runner.stage.process.health import StageMetrics, health_app, serve_health
from runner.transport.connection import ProvingListener, interface_address
from runner.transport.control import (
    EpochFailed,
    Form,
    GroupMemory,
    Join,
    Leaving,
    Loaded,
    LoadFailed,
    Message,
    Released,
    Remember,
    StageInfo,
    Welcome,
)
from runner.transport.frames import Epoch
from web.listener import bind

if TYPE_CHECKING:
    from runner.stage.process.compute_loop import ComputeLoop

logger = logging.getLogger(__name__)


class ControlThread(threading.Thread):
    """Control connection, data listener and health of one stage, on one event loop.

    The main thread waits for `welcomed`, loads the commit it names, and hands its compute loop
    over with `serve`. The loop is stopped once the stage may end after a SIGTERM.
    """

    def __init__(self, spec: GroupSpec, rank: RankSpec, token: bytes) -> None:
        super().__init__(name="control", daemon=True)
        self._spec, self._rank, self._token = spec, rank, token
        self._instance = secrets.token_hex(8)
        self._health = bind(spec.bind_address, rank.health_port)
        # A named interface is bound at once, so that a wrong name is told before anything else.
        self._address = interface_address(rank.interface) if rank.interface else spec.bind_address
        self._data = bind(self._address, rank.data_port) if self._address else None
        self._listener: ProvingListener | None = None
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._link = ControlLink(
            spec,
            rank.rank,
            token,
            make_join=self._make_join,
            received=self._received,
            lost=self._lost,
        )
        self._epochs = Epochs(spec, rank.rank, token, send=self._link.send, fail=self.fail_epoch)
        self._compute: ComputeLoop | None = None
        self._stage: StageInfo | None = None
        self._failure = ""
        self._leaving = False
        self._commit: str | None = None
        self._memory: GroupMemory | None = None
        self._alone_since: float | None = None
        self._welcomed = threading.Event()

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException:
            logger.critical("the control thread failed", exc_info=True)
            os._exit(1)  # a stage that nobody can talk to must not look alive

    async def _main(self) -> None:
        metrics = StageMetrics(
            self._spec.model_name, self._rank.rank, lambda: self._stage is not None
        )
        health = health_app(self._livez, self._readyz, metrics.registry)
        async with asyncio.TaskGroup() as group:
            group.create_task(serve_health(health, self._health))
            group.create_task(self._link.run())

    # Called by the main thread.

    def wait_for_commit(self) -> str:
        """The commit of the model that the master wants loaded."""
        self._welcomed.wait()
        assert self._commit is not None
        return self._commit

    def serve(self, compute: ComputeLoop, stage: StageInfo) -> None:
        """Weights are loaded: tell the master, and take part in epochs from now on."""

        def begin() -> None:
            self._compute, self._stage = compute, stage
            self._epochs.attach(compute, stage)
            self._link.send(Loaded(stage))

        self._loop.call_soon_threadsafe(begin)

    def fail_epoch(self, epoch: Epoch, reason: str) -> None:
        """From any thread: this epoch cannot go on, and why."""
        logger.warning("epoch %s is lost: %s", epoch, reason)
        message = EpochFailed(epoch.counter, reason)
        self._loop.call_soon_threadsafe(self._epochs.report_failure, epoch, message)

    def report_load_failure(self, reason: str) -> None:
        """Tell the master why this stage ends; waits until it has been told, at most 2 s."""

        async def report() -> None:
            self._failure = reason
            self._link.send(LoadFailed(reason))
            await self._link.flush()

        self._wait_for(report())

    def end_process(self, reason: str) -> NoReturn:
        """The device is broken, and no process mends its own context: tell the master, at most
        2 s long, and end with code 1. The kubelet or the local stack starts a new one."""

        async def report() -> None:
            self._epochs.report_end(reason)
            await self._link.flush()

        try:
            logger.critical("%s", reason)
            self._wait_for(report())
            logging.shutdown()
        finally:
            os._exit(1)

    def leave(self) -> None:
        """SIGTERM: announce it, and stop computing once the group does without this stage.

        Bounded by request_deadline_s: no request can still need this stage after that.
        """

        def announce() -> None:
            self._leaving = True
            self._loop.call_later(self._spec.request_deadline_s, self._stop, "the deadline passed")
            if self._link.connected and self._epochs.active:
                self._link.send(Leaving())
            else:
                self._stop("it is in no epoch")

        self._loop.call_soon_threadsafe(announce)

    def _wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=2)

    # Called on the event loop.

    def _make_join(self, route: str) -> Join:
        self._listen(self._address or route)
        assert self._listener is not None
        return Join(
            instance=self._instance,
            process_id=os.getpid(),
            address=self._rank.advertise_address or self._listener.address,
            data_port=self._rank.data_port,
            commit=self._commit,
            stage=self._stage,
            memory=self._memory,
            alone_s=0.0 if self._alone_since is None else time.monotonic() - self._alone_since,
        )

    def _listen(self, address: str) -> None:
        """Serve data connections on `address`; without a named one it follows the route."""
        if self._listener is not None and self._listener.address == address:
            return
        listening = self._data or bind(address, self._rank.data_port)
        self._data = None
        for task in self._tasks:
            task.cancel()
        digest = spec_hash(self._spec)
        self._listener = ProvingListener(
            listening, self._token, digest, self._epochs.judge, self._epochs.deliver
        )
        task = self._loop.create_task(self._listener.serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _received(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._welcome(message.commit)
        elif isinstance(message, Form):
            self._epochs.form(message)
        elif isinstance(message, Remember):
            self._memory = message.memory
        elif isinstance(message, EpochFailed):
            self._epochs.dissolve(message.counter, message.reason)
        elif isinstance(message, Released) and self._leaving:
            self._stop(message.reason)

    def _welcome(self, commit: str) -> None:
        self._alone_since = None
        if self._commit is None:
            self._commit = commit
            self._welcomed.set()
        elif commit != self._commit:
            # Other weights than those held: the restarted process loads the right ones.
            logger.error("the master serves commit %s, this stage holds %s", commit, self._commit)
            os._exit(1)

    def _lost(self, reason: str) -> None:
        if self._alone_since is None:
            self._alone_since = time.monotonic()
        self._epochs.dissolve(None, reason)
        if self._leaving:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        logger.info("ending after SIGTERM: %s", reason)
        if self._compute is not None:
            self._compute.inbox.put(Stop())

    def _livez(self) -> str:
        if self._compute is None:
            return ""
        if self._compute.device_error:
            return self._compute.device_error
        return "the compute loop does not turn" if self._compute.stuck() else ""

    def _readyz(self) -> str:
        if self._failure:
            return self._failure
        return "" if self._stage is not None else "loading the weights"
