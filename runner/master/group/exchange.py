"""What an exchange of weights means for requests: new ones wait, those that run end or go on."""

from __future__ import annotations

import asyncio
import time

from runner.errors import ModelSwapped
from runner.master.group.formation import RequestHolder
from runner.master.group.history import History
from runner.master.group.keeper import SpecKeeper
from runner.master.group.spec_changes import what_changes
from runner.master.group.swap import Swap

DRAIN_LOOK_S = 0.02


class Exchange:
    """Follows what the keeper's specs say, and has the history tell of it."""

    def __init__(self, keeper: SpecKeeper, history: History, listener: RequestHolder) -> None:
        self._keeper, self._history, self._listener = keeper, history, listener
        self._requests_wait = False
        self._drained_for: Swap | None = None

    def follow(self) -> None:
        """Called after all that may have changed; does each thing once."""
        specs = self._keeper.specs
        if specs.requests_wait != self._requests_wait:
            self._requests_wait = specs.requests_wait
            self._listener.requests_wait(self._requests_wait)
        swap = specs.swap
        if swap is None or swap is self._drained_for:
            if swap is not None and swap.phase == "failed":
                self._history.swap_failed(swap.reason)
            return
        if swap.phase == "draining":
            self._drained_for = swap
            self._keeper.start(self._drain(swap))

    async def _drain(self, swap: Swap) -> None:
        """Until what runs has ended or its time is up; then the old weights are of no use."""
        specs, old = self._keeper.specs, self._keeper.specs.in_force
        assert old is not None
        limit_s = swap.spec.swap_drain_s
        if limit_s is None:
            limit_s = old.spec.request_deadline_s
        if self._keeper.cannot_go_on:
            limit_s = 0.0
        ends = time.monotonic() + limit_s
        waited_for = self._listener.must_be_waited_for
        while swap.running and waited_for(time.monotonic() < ends):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_LOOK_S)
        if not swap.running:
            return
        if not specs.keeps_the_model:
            was, will = old.spec.model_name, swap.spec.model_name
            self._listener.end_open(
                ModelSwapped(
                    f"the model was changed from {was} to {will} while this request ran: ask again"
                )
            )
        self._history.swap_began(what_changes(old.spec, swap.spec), time.time())
        self._keeper.drained()
