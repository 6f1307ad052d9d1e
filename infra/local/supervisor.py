"""Keeps a set of processes running until it is told to stop: the kubelet of one machine."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from infra.local.edit import DONE, FAILED, RUNNING, EditState, Wanted
from infra.local.process import PROBE_TIMEOUT_S, KeptProcess, ProcessDefinition
from infra.local.processes import TIERS
from infra.local.progress import Progress
from infra.local.rollout import RolloutDefinition, ranks_in_use, roll_out

EXIT_USAGE = 2
# A process that ends this often before the stack was ever ready will not do better.
STARTS_BEFORE_READY = 5
# Each look goes through every tier behind; a stack that is up is not to spend its time on it.
_READY_PERIOD_S, _NOT_READY_PERIOD_S = 1.0, 0.25
_DRAIN_MARGIN_S = 10.0
_LOG_TAIL_BYTES = 8192


class Supervisor:
    """`run()` returns the exit code. `changed(phase, reason)` is called when either changes, or
    `edit`; while it raises OSError it is called again at each look. `wanted` is what it is, or is
    to be first; SIGUSR1 makes it what `read_wanted` says.
    """

    def __init__(
        self,
        wanted: Wanted,
        progress: Progress,
        changed: Callable[[str, str], None],
        *,
        startup_s: float,
        summary: str,
        read_wanted: Callable[[], Wanted | None] = lambda: None,
    ) -> None:
        self.wanted = wanted
        self.edit: EditState | None = None
        self._progress = progress
        self._changed = changed
        self._startup_s = startup_s
        self._summary = summary
        self._read_wanted = read_wanted
        self.processes: list[KeptProcess] = []
        self._tasks: dict[KeptProcess, asyncio.Task[None]] = {}
        self._editing: asyncio.Task[None] | None = None
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._been_ready = False
        self._proving = ""
        self._phase = ("starting", "")
        self._untold = ""
        self._failure = ""
        self._exit_code = 0
        self._shown: tuple[object, ...] = ()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        async with httpx.AsyncClient(trust_env=False) as client:
            self._client = client
            for definition in self.wanted.definitions:
                self._start(definition)
            if self.wanted.rollout is not None:
                self._proving = "handing the spec over"
                self._editing = asyncio.create_task(self._prove_first())
            loop.add_signal_handler(signal.SIGUSR1, self._on_edit)
            try:
                await self._watch(client)
                if self._failure:
                    self._stop_now.set()
                await self._end_edit()  # which would start what is to end
                await self._drain()
            finally:
                await self._end_edit()
                await self._end_all()
        self._progress.done()
        if self._failure:
            self._tell("failed", self._failure)
            self._progress.say(f"error: {self._failure}")
        return self._exit_code

    def _on_signal(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    def _on_edit(self) -> None:
        """One after the other: `apply` waits for its turn before it writes."""
        wanted = self._read_wanted()
        if wanted is None or self._stop.is_set() or (self._editing and not self._editing.done()):
            return
        self._editing = asyncio.create_task(self._apply(wanted))

    async def _prove_first(self) -> None:
        assert self.wanted.rollout is not None
        reason = await roll_out(self.wanted.rollout, self._say_proving)
        self._proving = ""
        if reason:
            self._fail(reason)

    def _say_proving(self, line: str) -> None:
        self._proving = line

    async def _apply(self, wanted: Wanted) -> None:
        """Processes that are new or others first, what is no longer wanted once it has answered."""
        before = {item.definition.name: item for item in self.processes}
        names = {item.name for item in wanted.definitions}
        others = [
            item
            for item in wanted.definitions
            if item.name in before and item != before[item.name].definition
        ]
        added = [item for item in wanted.definitions if item.name not in before]
        self._note_edit(EditState(wanted.id, RUNNING, _starting([*others, *added])))
        await self._end(before[item.name] for item in others)
        started = {item.name: self._start(item) for item in [*others, *added]}
        assert wanted.rollout is not None
        reason = await roll_out(
            wanted.rollout, lambda line: self._note_edit(EditState(wanted.id, RUNNING, line))
        )
        if reason:
            await self._end_unused([started[item.name] for item in added], wanted.rollout)
            await self._end(started[item.name] for item in others)
            for item in others:
                self._start(before[item.name].definition)
            self._sort(self.wanted)
            self._note_edit(EditState(wanted.id, FAILED, reason))
            return
        await self._end(item for name, item in before.items() if name not in names)
        self._sort(wanted)
        self.wanted = wanted
        self._note_edit(replace(self.edit or EditState(wanted.id, DONE), phase=DONE))

    def _sort(self, wanted: Wanted) -> None:
        order = {item.name: place for place, item in enumerate(wanted.definitions)}
        self.processes.sort(key=lambda item: order.get(item.definition.name, len(order)))

    async def _end_unused(self, added: list[KeptProcess], rollout: RolloutDefinition) -> None:
        """Those of a failed edit, but ranks that the group counts on all the same: what was not
        proved may be in force."""
        stages = sum(item.definition.tier == "stage" for item in self.processes)
        more = [item for item in added if item.definition.tier == "stage"]
        if more and await ranks_in_use(self._client, rollout) > stages - len(more):
            added = [item for item in added if item not in more]
        await self._end(added)

    async def _end_edit(self) -> None:
        if self._editing is not None:
            self._editing.cancel()
            await asyncio.gather(self._editing, return_exceptions=True)

    def _note_edit(self, edit: EditState) -> None:
        if edit == self.edit:
            return
        self.edit = edit
        self._progress.say(f"edit {edit.phase}: {edit.text}")
        self._tell(*self._phase)

    def _start(self, definition: ProcessDefinition) -> KeptProcess:
        process = KeptProcess(definition, self._client, self._exited)
        self.processes.append(process)
        self._tasks[process] = asyncio.create_task(process.keep())
        return process

    @property
    def _drain_limit_s(self) -> float:
        return self.wanted.drain_s + _DRAIN_MARGIN_S

    async def _end(self, processes: Iterable[KeptProcess]) -> None:
        """SIGTERM, and SIGKILL for what does not end in the time that requests may take."""
        ending = list(processes)
        for process in ending:
            process.stop(signal.SIGTERM)
        tasks = [self._tasks[process] for process in ending]
        if tasks:
            await asyncio.wait(tasks, timeout=self._drain_limit_s)
        for process in ending:
            process.stop(signal.SIGKILL)
            if process.process_id is None:  # it waits for its next start
                self._tasks[process].cancel()
            await asyncio.wait([self._tasks[process]])
            # Both at once: the edit may be ended at each await, and what it leaves is drained.
            del self._tasks[process]
            self.processes.remove(process)

    def _exited(self, process: KeptProcess, code: int) -> bool:
        name, log = process.definition.name, process.definition.log
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if process.failure:
            how = f"cannot be started: {process.failure}"
        hopeless = code == EXIT_USAGE or process.restarts + 1 >= STARTS_BEFORE_READY
        if not self._been_ready and hopeless:
            said = how if process.failure else f"{how}: {last_words(log)}"
            self._fail(f"{name} {said} (log: {log})", code)
            return False
        self._progress.say(f"{name} {how}; it is started again")
        return True

    def _fail(self, reason: str, code: int = 1) -> None:
        if not self._failure:
            self._failure, self._exit_code = reason, EXIT_USAGE if code == EXIT_USAGE else 1
        self._stop.set()

    async def _watch(self, client: httpx.AsyncClient) -> None:
        """Until told to stop: is everything ready, and what is it waiting for."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._startup_s
        while not self._stop.is_set():
            definitions = [item.definition for item in self.processes]
            answers = [await _readiness(client, item) for item in definitions]
            reasons = [f"waiting: {answer}" for answer in answers if answer]
            if self._proving:
                reasons.insert(0, self._proving)
            self._note("" if not reasons else reasons[0])
            if self._untold:
                self._tell(*self._phase)
            if self._proving:  # which has a limit of its own
                deadline = loop.time() + self._startup_s
            elif reasons and not self._been_ready and loop.time() > deadline:
                said = reasons[0].removeprefix("waiting: ")
                self._fail(f"not ready within {self._startup_s:g} s: {said}")
            period_s = _NOT_READY_PERIOD_S if reasons else _READY_PERIOD_S
            try:
                await asyncio.wait_for(self._stop.wait(), period_s)
            except TimeoutError:
                pass

    def _note(self, reason: str) -> None:
        """Tell what has changed since the last time."""
        processes = tuple((item.process_id, item.restarts) for item in self.processes)
        if (shown := (reason, processes)) == self._shown:
            return
        self._shown = shown
        if reason:
            said = reason.removeprefix("waiting: ")
            self._tell("not ready" if self._been_ready else "starting", said)
            self._progress.wait_for(reason)
            return
        self._progress.done()
        self._progress.say("ready again" if self._been_ready else self._summary)
        self._been_ready = True
        self._tell("ready", "")  # last: `up --detach` goes when it reads this, with the summary

    def _tell(self, phase: str, reason: str) -> None:
        self._phase = (phase, reason)
        try:
            self._changed(phase, reason)
        except OSError as error:  # a full disk is no reason to end what serves
            if str(error) != self._untold:
                self._progress.say(f"the state cannot be written, and is tried again: {error}")
            self._untold = str(error)
        else:
            self._untold = ""

    async def _drain(self) -> None:
        """Tier by tier from the front, each for as long as its requests may take."""
        self._tell("draining", self._failure)
        if not self._failure:
            self._progress.wait_for("finishing what is running; once more stops it now")
        for tier in TIERS:
            tasks: list[asyncio.Task[None]] = []
            for process in self.processes:
                if process.definition.tier == tier:
                    process.stop(signal.SIGTERM)
                    tasks.append(self._tasks[process])
            if tasks and not self._stop_now.is_set():
                now = asyncio.create_task(self._stop_now.wait())
                ended = asyncio.create_task(asyncio.wait(tasks))
                first: set[asyncio.Task[Any]] = {now, ended}
                await asyncio.wait(
                    first, timeout=self._drain_limit_s, return_when=asyncio.FIRST_COMPLETED
                )
                now.cancel()
                ended.cancel()

    async def _end_all(self) -> None:
        for process, task in self._tasks.items():
            process.stop(signal.SIGKILL)
            if process.process_id is None:
                task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _starting(definitions: Iterable[ProcessDefinition]) -> str:
    names = ", ".join(item.name for item in definitions)
    return f"starting {names} anew" if names else "handing the spec over"


async def _readiness(client: httpx.AsyncClient, definition: ProcessDefinition) -> str:
    """ "" where ready, else the reason in the process's own words."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            answer = await client.get(definition.url + "/readyz", timeout=PROBE_TIMEOUT_S)
    except (httpx.HTTPError, TimeoutError):
        return f"{definition.name} does not answer yet"
    if answer.is_success:
        return ""
    try:
        reason = answer.json()["reason"]
    except (ValueError, KeyError, TypeError):
        reason = f"/readyz answers {answer.status_code}"
    return f"{definition.name}: {reason}"


def last_words(log: Path) -> str:
    """The last line of a log, the message alone where it is a JSON line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    line = next((item.strip() for item in reversed(lines) if item.strip()), "it said nothing")
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
