"""What the master has a stage prepare, load and take, on the control thread's event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from contract.specs import GroupSpec, StageSpec, spec_hash
from runner.errors import RunnerError
from runner.models.progress import FetchProgress
from runner.stage.process.stall import Stall
from runner.transport.control import (
    Holding,
    Loaded,
    LoadFailed,
    Message,
    Prepare,
    Prepared,
    PrepareFailed,
    Progress,
    StageInfo,
    Taken,
)

if TYPE_CHECKING:
    from runner.stage.model.stage_model import StageModel
    from runner.stage.process.load import PreparedPart

logger = logging.getLogger(__name__)

REPORT_EACH_S = 1.0
GIVE_BACK_AFTER_S = 0.1
_LONGEST_REASON = 500  # characters

Beside = tuple[GroupSpec | None, StageInfo | None]
"""The spec and the weights that a stage computes with, None where it has none."""


class Orders:
    """`holding` is what the main thread computes with, None where it has no weights.

    Parts are prepared on a thread of their own, beside what is computed, and loaded there where
    memory holds both. `send` tells the master, `exchange` has the main thread take a part, and
    `give_up` ends the process with a code: where the group has nothing else to serve and the stage
    cannot have it.
    """

    def __init__(
        self,
        spec: StageSpec,
        *,
        send: Callable[[Message], None],
        exchange: Callable[[PreparedPart, StageModel | None], None],
        give_up: Callable[[int], None],
    ) -> None:
        self._spec = spec
        self._send, self._exchange, self._give_up = send, exchange, give_up
        self._held: PreparedPart | None = None
        self._info: StageInfo | None = None
        self._order: Prepare | None = None
        self._part: PreparedPart | None = None  # of that order, once it is prepared
        self._model: StageModel | None = None  # of that part, where it is loaded ahead
        self._one_ahead = threading.Lock()
        self._loading: PreparedPart | None = None  # the last one given to the main thread
        self.failure = ""
        # The main thread has imported torch and transformers, which two at a time cannot.
        self.imported = threading.Event()

    @property
    def holding(self) -> Holding | None:
        if self._held is None or self._info is None:
            return None
        return Holding(spec_hash(self._held.spec), self._info)

    @property
    def spec(self) -> GroupSpec | None:
        """Of what is held."""
        return None if self._held is None else self._held.spec

    @property
    def model_name(self) -> str:
        """Of what is held or prepared, "" for nothing."""
        known = self.spec or (self._order and self._order.spec)
        return known.model_name if known else ""

    # What the master says

    def prepare(self, order: Prepare) -> None:
        """Begin, unless it is the order that is carried out already."""
        if self._order == order and not self.failure:
            if self._part is not None:
                self._tell_prepared(order)
            return
        self._begin(order)
        if self._held is not None and same_weights(self._held, order, self._spec.rank):
            part = replace(self._held, spec=order.spec, sharing=order.sharing)
            self._prepared(order, part, None)
            return
        progress, loop = FetchProgress(), asyncio.get_running_loop()
        thread = threading.Thread(
            target=self._work,
            args=(order, progress, self._beside(order), loop),
            name="prepare",
            daemon=True,
        )
        thread.start()
        assert thread.native_id is not None
        self._report(order, progress, Stall(thread.native_id, self._spec.stall_s))

    def _beside(self, order: Prepare) -> Beside | None:
        """What the order's weights would lie beside; None where they are loaded when their time
        comes: at once, or when the main thread has done what it is at."""
        busy = self._held is None and self._loading is not None
        return None if order.in_force or busy else (self.spec, self._info)

    def forget(self, digest: str) -> None:
        """What was ordered of this spec, of any where it is "", is not wanted any more."""
        order, part = self._order, self._part
        if order is None or digest not in ("", spec_hash(order.spec)):
            return
        if part is None or part is not self._loading:
            self._begin(None)

    def _begin(self, order: Prepare | None) -> None:
        """What was prepared before is gone."""
        had = self._model is not None
        self._order, self._part, self._model, self.failure = order, None, None, ""
        if had:
            self._give_back_soon()

    def _give_back_soon(self) -> None:
        """Once nobody refers to the model."""
        from runner.stage.process.ahead import give_back

        asyncio.get_running_loop().call_later(GIVE_BACK_AFTER_S, give_back, self._spec)

    def load(self, digest: str) -> None:
        """The part that is prepared goes into the place of what is held."""
        holding, part = self.holding, self._part
        if holding is not None and holding.spec_hash == digest:
            self._send(Loaded(digest, holding.stage))
        elif part is not None and part is self._loading and holding is None:
            pass  # the master was cut off meanwhile, and is told when it is loaded
        elif part is None or spec_hash(part.spec) != digest:
            self._send(LoadFailed(digest, "this spec is not prepared"))
        else:
            model, self._model = self._model, None
            self._held = self._info = None
            self._loading = part
            self._exchange(part, model)
            # The main thread's id is the process's.
            self._watch_load(part, Stall(os.getpid(), self._spec.stall_s))

    def take(self, spec: GroupSpec) -> None:
        """What is held goes by another spec, of which it has the same part."""
        held = self._held
        if held is None or not same_weights(
            held, Prepare(spec, held.commit, held.sharing, True), self._spec.rank
        ):
            logger.error("cannot take a spec of other weights than those held")
            return
        self._held = replace(held, spec=spec)
        self._send(Taken(spec_hash(spec)))

    # What became of it

    def loaded(self, part: PreparedPart, info: StageInfo) -> bool:
        """Whether it is to be computed with: no other part has been asked for meanwhile."""
        if part is not self._loading:
            return False
        self._held, self._info, self.failure = part, info, ""
        self._send(Loaded(spec_hash(part.spec), info))
        return True

    def load_failed(self, part: PreparedPart, error: Exception) -> None:
        if part is self._loading:
            self.failure = told(error)
            self._part = self._loading = None  # the next order prepares anew
            self._send(LoadFailed(spec_hash(part.spec), self.failure))
            self._end_if_needed(error)

    def _prepared(self, order: Prepare, part: PreparedPart, model: StageModel | None) -> None:
        if order is self._order:
            self._part, self._model = part, model
            self._tell_prepared(order)
        elif model is not None:
            self._give_back_soon()

    def _tell_prepared(self, order: Prepare) -> None:
        self._send(Prepared(spec_hash(order.spec), self._model is not None))

    def _report(self, order: Prepare, progress: FetchProgress, stall: Stall) -> None:
        """Each second while it is prepared, and once more at the end."""
        if order is not self._order or self.failure:
            return
        digest = spec_hash(order.spec)
        self._send(Progress(digest, progress.fetched_bytes, progress.wanted_bytes))
        if self._part is not None:
            return
        if stall.over(progress.fetched_bytes) and self.imported.is_set():
            self._failed(order, self._stalled())
            self._order = None  # what its thread says later is not waited for
            if self._held is None:
                self._give_up(1)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(REPORT_EACH_S, self._report, order, progress, stall)

    def _stalled(self) -> RunnerError:
        return RunnerError(f"no byte came for {self._spec.stall_s:g} s")

    def _watch_load(self, part: PreparedPart, stall: Stall) -> None:
        """Each second while the main thread loads: nobody else can end it."""
        if part is not self._loading or self._held is not None:
            return
        if stall.over():
            self.load_failed(part, self._stalled())
            self._give_up(1)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(REPORT_EACH_S, self._watch_load, part, stall)

    def _failed(self, order: Prepare, error: Exception) -> None:
        self._give_back_soon()
        if order is self._order:
            self.failure = told(error)
            self._send(PrepareFailed(spec_hash(order.spec), self.failure))
            self._end_if_needed(error)

    def _end_if_needed(self, error: Exception) -> None:
        if self._order is not None and self._order.in_force:
            self._give_up(error.exit_code if isinstance(error, RunnerError) else 1)

    # On a thread of its own

    def _work(
        self,
        order: Prepare,
        progress: FetchProgress,
        beside: Beside | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        try:
            self.imported.wait()
            from runner.stage.process.load import prepare

            part = prepare(self._spec, order, progress, self._held)
            model = None if beside is None else self._load_ahead(order, part, beside)
        except Exception as error:  # whatever a broken checkpoint makes of its reader
            if not isinstance(error, RunnerError):
                logger.exception("the model cannot be prepared")
            loop.call_soon_threadsafe(self._failed, order, error.with_traceback(None))
        else:
            loop.call_soon_threadsafe(self._prepared, order, part, model)

    def _load_ahead(self, order: Prepare, part: PreparedPart, beside: Beside) -> StageModel | None:
        """One at a time, and none that is not wanted any more."""
        from runner.stage.process.ahead import give_back, load_ahead

        with self._one_ahead:
            if order is not self._order:
                return None
            model = load_ahead(self._spec, part, *beside)
            if order is self._order:
                return model
            del model
            give_back(self._spec)
            return None


def same_weights(held: PreparedPart, order: Prepare, rank: int) -> bool:
    """Whether the order's part for this rank is what is held already."""
    spec = order.spec
    return (
        rank < len(spec.ranks)
        and held.commit == order.commit
        and held.spec.model_name == spec.model_name
        and held.spec.dtype == spec.dtype
        and held.spec.ranks[rank] == spec.ranks[rank]
    )


def told(error: Exception) -> str:
    text = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
    return text[:_LONGEST_REASON]
