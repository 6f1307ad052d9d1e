"""One stage: the compute loop in the main thread, everything it talks to in the control thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn

from contract.specs import StageSpec
from runner.stage.process.control_link import ControlLink
from runner.stage.process.cuda_driver import FoundDevice, found_device
from runner.stage.process.epochs import Epochs
from runner.stage.process.health import StageMetrics, health_app, serve_health
from runner.stage.process.orders import Orders
from runner.stage.process.work import Exchange, Stop, Work
from runner.transport.connection import ProvingListener, interface_address
from runner.transport.control import (
    EpochFailed,
    Forget,
    Form,
    GroupMemory,
    Join,
    Leaving,
    Load,
    Message,
    Prepare,
    Released,
    Remember,
    StageInfo,
    Take,
    Welcome,
)
from runner.transport.frames import Epoch
from web.listener import bind

if TYPE_CHECKING:
    from runner.stage.model.stage_model import StageModel
    from runner.stage.process.compute_loop import ComputeLoop
    from runner.stage.process.load import PreparedPart

logger = logging.getLogger(__name__)


class ControlThread(threading.Thread):
    """Control connection, data listener and health of one stage, on one event loop.

    `inbox` is what the main thread has to do. It is stopped once the stage may end after a SIGTERM.
    """

    def __init__(self, spec: StageSpec, token: bytes) -> None:
        super().__init__(name="control", daemon=True)
        self._spec, self._token = spec, token
        self.inbox: SimpleQueue[Work] = SimpleQueue()
        self._instance = secrets.token_hex(8)
        self._health = bind(spec.bind_address, spec.health_port)
        # A named interface is bound at once, so that a wrong name is told before anything else.
        self._address = interface_address(spec.interface) if spec.interface else spec.bind_address
        self._data = bind(self._address, spec.data_port) if self._address else None
        self._listener: ProvingListener | None = None
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._link = ControlLink(
            spec,
            token,
            make_join=self._make_join,
            received=self._received,
            lost=self._lost,
        )
        self._epochs = Epochs(spec, token, self.inbox, send=self._link.send, fail=self.fail_epoch)
        self._orders = Orders(
            spec, send=self._link.send, exchange=self._exchange, give_up=self._give_up
        )
        self._compute: ComputeLoop | None = None
        self._figures: Callable[[], Mapping[str, float]] = dict
        self._welcome: Welcome | None = None
        self._leaving = False
        self._memory: GroupMemory | None = None
        self._device = FoundDevice()
        self._alone_since: float | None = None

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
            self._spec.rank,
            model_name=lambda: self._orders.model_name,
            ready=lambda: self._orders.holding is not None,
            device=lambda: self._figures(),
        )
        health = health_app(self._livez, self._readyz, metrics.registry)
        async with asyncio.TaskGroup() as group:
            group.create_task(serve_health(health, self._health))
            group.create_task(self._join())

    async def _join(self) -> None:
        # A driver's start may take seconds, in which health is served.
        self._device = await asyncio.to_thread(found_device, self._spec.device)
        await self._link.run()

    # Called by the main thread.

    def imported(self, figures: Callable[[], Mapping[str, float]] = dict) -> None:
        """What computes is imported: parts of a model can be prepared. `figures` are the device's,
        for metrics."""
        self._figures = figures
        self._orders.imported.set()

    def loaded(self, part: PreparedPart, info: StageInfo, compute: ComputeLoop | None) -> None:
        """The main thread computes with this part from now on: tell the master, take part."""

        def begin() -> None:
            if self._orders.loaded(part, info):
                self._compute = compute
                self._epochs.attach(part.spec, info)

        self._loop.call_soon_threadsafe(begin)

    def load_failed(self, part: PreparedPart, error: Exception) -> None:
        """The main thread holds no weights."""
        logger.error("%s", error)
        self._loop.call_soon_threadsafe(self._orders.load_failed, part, error)

    def fail_epoch(self, epoch: Epoch, reason: str) -> None:
        """From any thread: this epoch cannot go on, and why."""
        logger.warning("epoch %s is lost: %s", epoch, reason)
        message = EpochFailed(epoch.counter, reason)
        self._loop.call_soon_threadsafe(self._epochs.report_failure, epoch, message)

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
            spec = self._orders.spec
            if spec is None:
                os._exit(0)  # it serves nobody, and the main thread may be in the middle of a load
            self._loop.call_later(spec.request_deadline_s, self._stop, "the deadline passed")
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
            address=self._spec.advertise_address or self._listener.address,
            data_port=self._spec.data_port,
            node=self._spec.node,
            devices=self._spec.visible_devices or self._spec.device,
            holding=self._orders.holding,
            memory=self._memory,
            alone_s=0.0 if self._alone_since is None else time.monotonic() - self._alone_since,
            device_uuid=self._device.uuid,
            device_bytes=self._device.memory_bytes,
        )

    def _listen(self, address: str) -> None:
        """Serve data connections on `address`; without a named one it follows the route."""
        if self._listener is not None and self._listener.address == address:
            return
        listening = self._data or bind(address, self._spec.data_port)
        self._data = None
        for task in self._tasks:
            task.cancel()
        self._listener = ProvingListener(
            listening, self._token, self._epochs.judge, self._epochs.deliver
        )
        task = self._loop.create_task(self._listener.serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _received(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self._alone_since, self._welcome = None, message
        elif isinstance(message, Prepare):
            self._orders.prepare(message)
        elif isinstance(message, Forget):
            self._orders.forget(message.spec_hash)
        elif isinstance(message, Load):
            self._orders.load(message.spec_hash)
        elif isinstance(message, Take):
            self._orders.take(message.spec)
            if self._orders.spec == message.spec:
                self._epochs.take(message.spec)
        elif isinstance(message, Form):
            self._epochs.form(message)
        elif isinstance(message, Remember):
            self._memory = message.memory
        elif isinstance(message, EpochFailed):
            self._epochs.dissolve(message.counter, message.reason)
        elif isinstance(message, Released) and self._leaving:
            self._stop(message.reason)

    def _exchange(self, part: PreparedPart, model: StageModel | None) -> None:
        self._epochs.detach("the weights are exchanged")
        self._compute = None
        self.inbox.put(Exchange(part, model))

    def _give_up(self, code: int) -> None:
        """The master is told why before the process ends; the main thread may hang."""

        async def end() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._link.flush(), 2)
            logger.error("%s", self._orders.failure)
            logging.shutdown()
            os._exit(code)

        task = self._loop.create_task(end())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lost(self, reason: str) -> None:
        if self._alone_since is None:
            self._alone_since = time.monotonic()
        self._epochs.dissolve(None, reason)
        if self._leaving:
            self._stop(reason)

    def _stop(self, reason: str) -> None:
        logger.info("ending after SIGTERM: %s", reason)
        self.inbox.put(Stop())

    def _livez(self) -> str:
        if self._compute is None:
            return ""
        if self._compute.device_error:
            return self._compute.device_error
        return "the compute loop does not turn" if self._compute.stuck() else ""

    def _readyz(self) -> str:
        """Ready are weights, and a rank that has joined and has no part in what is served."""
        if self._orders.holding is not None:
            return ""
        if self._orders.failure:
            return self._orders.failure
        if self._welcome is None:
            why = self._link.refusal
            return "the master has not let it in yet" + (f": {why}" if why else "")
        return "loading the weights" if self._welcome.part else ""
