"""The main thread of a stage: loads what it is told to, and computes with it until the next."""

from __future__ import annotations

import logging
import os
import signal

import torch

from contract.specs import StageSpec
from runner.errors import RunnerError
from runner.stage.model.stage_model import StageModel
from runner.stage.process.ahead import give_back
from runner.stage.process.compute_loop import ComputeLoop
from runner.stage.process.control_thread import ControlThread
from runner.stage.process.device import device_of
from runner.stage.process.error_kind import ErrorKind, error_kind
from runner.stage.process.load import PreparedPart, describe, load
from runner.stage.process.orders import same_weights
from runner.stage.process.work import Exchange, Stop
from runner.transport.control import Prepare, StageInfo

logger = logging.getLogger(__name__)


class Worker:
    """Holds one model at a time, or none."""

    def __init__(self, spec: StageSpec, control: ControlThread) -> None:
        self._spec, self._control = spec, control
        self._part: PreparedPart | None = None
        self._model: StageModel | None = None
        self._compute: ComputeLoop | None = None
        self._used = False

    def run(self) -> int:
        """Until the process is to end; its exit code."""
        if self._spec.threads is not None:
            torch.set_num_threads(self._spec.threads)
        signal.signal(signal.SIGTERM, self._leave)
        self._control.imported(device_of(torch.device(self._spec.device)).figures)
        while True:
            idle = self._compute is None
            work = self._control.inbox.get() if idle else self._compute_on()
            if isinstance(work, Stop):
                return work.code
            if isinstance(work, Exchange):
                self._exchange(work)
            del work  # it may have the last reference to a model

    def _compute_on(self) -> Stop | Exchange:
        assert self._compute is not None
        return self._compute.run()

    def _leave(self, _signal: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # asked twice: at once
        self._control.leave()

    def _exchange(self, work: Exchange) -> None:
        part = work.part
        try:
            info = self._load(part, work.model)
        except Exception as error:  # whatever a broken checkpoint makes of its reader
            if not isinstance(error, RunnerError):
                logger.exception("the weights cannot be loaded")
            if error_kind(error) is ErrorKind.DEVICE:
                self._control.end_process(f"rank {self._spec.rank}: its device failed: {error}")
            self._control.load_failed(part, error.with_traceback(None))
        else:
            self._control.loaded(part, info, self._compute)
            return
        self._drop()

    def _load(self, part: PreparedPart, ahead: StageModel | None) -> StageInfo:
        assert part.spec.ranks[self._spec.rank].layers == part.layers
        model = self._model
        if model is None or self._part is None or not self._fits(self._part, part):
            del model
            self._drop()
            model = ahead or load(self._spec, part)
        info = describe(self._spec, part, model)
        self._part, self._model = part, model
        self._compute = ComputeLoop(
            self._spec.rank,
            model,
            self._spec.device,
            inbox=self._control.inbox,
            fail=self._control.fail_epoch,
            end_process=self._control.end_process,
            tokenizer=part.checkpoint.folder / "tokenizer.json",
        )
        return info

    def _fits(self, held: PreparedPart, part: PreparedPart) -> bool:
        wanted = Prepare(part.spec, part.commit, part.sharing, in_force=True)
        return same_weights(held, wanted, self._spec.rank)

    def _drop(self) -> None:
        """Before others are loaded: both together may be more than there is room for."""
        self._compute = self._model = self._part = None
        if self._used:  # by what could not be loaded, too
            give_back(self._spec)
        self._used = True
