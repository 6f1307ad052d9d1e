"""An event loop whose time passes at once: hours of timers in seconds, the same at each run."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class _Selector(selectors.DefaultSelector):
    """Waits for nothing but time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing will ever happen again"
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """For what talks to nobody outside of it."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def hold_up(self, seconds: float) -> None:
        """As a callback does that computes for so long."""
        self._virtual.now += seconds


def run_in_virtual_time(
    body: Callable[[], Coroutine[Any, Any, None]], *modules: ModuleType
) -> None:
    """`modules` take their time from the loop too. A callback's exception ends it and is raised."""
    loop = VirtualLoop()
    faults: list[BaseException] = []

    async def guarded() -> None:
        work = asyncio.ensure_future(body())

        def end(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            faults.append(context.get("exception") or RuntimeError(context["message"]))
            work.cancel()

        loop.set_exception_handler(end)
        await asyncio.wait([work])
        if faults:
            raise faults[0]
        work.result()

    clock = SimpleNamespace(monotonic=loop.time)
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "time", clock)
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(guarded())
