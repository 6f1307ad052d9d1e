"""The engine's watch: what should have happened by now and has not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from runner.master.engine.scheduler import Scheduler
from runner.master.group.formation import RankGroup
from runner.master.own_fault import OnFault, own_work
from runner.steps import Step

REFUSE_AFTER_S = 120.0  # without a group: new requests are not taken, open ones wait on
PROBE_AFTER_S = 2.0
WATCH_INTERVAL_S = 0.25


class Watch:
    """Looks for a step that is overdue, an idle pipeline to be probed, a group that does not form.

    `submit` sends a probe on its way. A fault of its own goes to `on_fault`.
    """

    def __init__(
        self,
        group: RankGroup,
        *,
        submit: Callable[[Step], None],
        on_fault: OnFault,
    ) -> None:
        self._group, self._submit, self._on_fault = group, submit, on_fault
        self._scheduler: Scheduler | None = None
        self._lost_at: float | None = None
        self._returned_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def forming_for_too_long(self) -> bool:
        return self._lost_at is not None and time.monotonic() - self._lost_at > REFUSE_AFTER_S

    def formed(self, scheduler: Scheduler) -> None:
        self._scheduler, self._lost_at = scheduler, None
        self._look_soon()

    def step_returned(self, now: float) -> None:
        self._returned_at = now

    def lost(self) -> None:
        self._scheduler, self._lost_at = None, time.monotonic()
        self._look_soon()

    def _look_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._look)

    @own_work
    def _look(self) -> None:
        self._look_soon()
        now, scheduler = time.monotonic(), self._scheduler
        if scheduler is not None and self._group.state == "ready":
            if (overdue := scheduler.overdue(now)) is not None:
                self._group.abandon_epoch(overdue)
            elif not scheduler.in_flight and now - self._returned_at > PROBE_AFTER_S:
                self._submit(scheduler.probe(now))
