"""What was served before this master: stages remember it, else its file says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from contract.specs import GroupSpec
from runner.errors import ModelUnavailable
from runner.master.group.own_part import OwnPart
from runner.transport.control import GroupMemory, Served

logger = logging.getLogger(__name__)

PATIENCE_S = 1.5  # a new master waits so long for stages that know what was served
RESOLVE_AGAIN_S = 5.0


class FormerSpec:
    """`file` counts where no stage knows of one. `failure` is why the master does not know what to
    load, where it should."""

    def __init__(self, file: GroupSpec | None, own: OwnPart) -> None:
        self.file, self._own = file, own
        self.failure = ""
        self._newest: tuple[int, Served] | None = None
        self._first, self._all = asyncio.Event(), asyncio.Event()

    @property
    def remembered(self) -> Served | None:
        """By the stage that knows best."""
        return None if self._newest is None else self._newest[1]

    def heard(self, memory: GroupMemory | None, members: int) -> None:
        """A stage has joined, the last of so many `members`."""
        known = -1 if self._newest is None else self._newest[0]
        if memory is not None and memory.served is not None and memory.version > known:
            self._newest = memory.version, memory.served
        self._first.set()
        expected = self.remembered.spec if self.remembered else self.file
        if expected is not None and members >= len(expected.ranks):
            self._all.set()

    async def found(self, failed: Callable[[], None], wanted: Callable[[], bool]) -> Served | None:
        """Once it is known and the master has its own part of it; None for nothing. `failed` is
        called when it has not, and then it is tried again while it is `wanted`."""
        await self._first.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all.wait(), PATIENCE_S)
        served = None
        while wanted():
            try:
                served = await self._look()
                break
            except ModelUnavailable as error:
                logger.error("%s", error)
                self.failure = str(error)
                failed()
                await asyncio.sleep(RESOLVE_AGAIN_S)
        self.failure = ""
        return served

    async def _look(self) -> Served | None:
        if (known := self.remembered) is not None:
            return await self._own.ready(known.spec, known.commit)
        return None if self.file is None else await self._own.ready(self.file, "")
