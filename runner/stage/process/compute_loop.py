"""The loop of a stage's main thread: one step after the other through its layers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import torch

from runner.stage.cpu.allocator import give_back_freed
from runner.stage.model.pruned import constructing
from runner.stage.model.stage_model import StageModel
from runner.stage.process.device import device_of
from runner.stage.process.error_kind import ErrorKind, error_kind
from runner.stage.process.forgotten import Forgotten
from runner.stage.process.work import Arrival, Exchange, NewEpoch, Stop, Work
from runner.stage.sampling.sampler import Sampler
from runner.steps import StageTime, Step
from runner.transport.frames import DTYPES, Epoch
from runner.transport.result_frame import encode_result
from runner.transport.step_frame import pass_on, pass_on_aborted

logger = logging.getLogger(__name__)

BEAT_INTERVAL_S = 0.5
STUCK_AFTER_S = 10.0
IDLE_AFTER_S = 5.0  # without a token to compute: freed memory goes back to the system
_LONGEST_REASON = 400  # characters

_Answer = tuple[bytes, memoryview | None]


@dataclass(frozen=True, slots=True)
class _Failure:
    """What is kept of a step's exception: its traceback would hold the step's tensors."""

    kind: ErrorKind
    what: str


class ComputeLoop:
    """Runs steps of the epoch that is open; `fail` is told of a step that raised.

    Two errors are the device's. Without memory a step is computed once more, all that was kept
    given back; then it is aborted: it goes on to the master, which makes smaller ones, and what was
    held of its requests is forgotten. After any other, nothing that this process computes can be
    trusted: `end_process` is told why, and does not return outside of tests.
    """

    def __init__(
        self,
        rank: int,
        model: StageModel,
        device: str,
        *,
        inbox: SimpleQueue[Work],
        fail: Callable[[Epoch, str], None],
        end_process: Callable[[str], None],
        tokenizer: Path | None = None,
    ) -> None:
        self._inbox = inbox
        self.device_error = ""
        self._rank, self._model = rank, model
        self._fail, self._end_process = fail, end_process
        self._place = torch.device(device)
        self._device = device_of(self._place)
        self._sampler = None
        if model.is_last:
            self._sampler = Sampler(model.vocab_size, self._place, tokenizer)
        self._forgotten = Forgotten()
        self._admitted: set[int] = set()  # by the step that is being computed
        self._beat = time.monotonic()
        self._current: Arrival | None = None
        self._busy_at: float | None = None  # the last step with tokens; None: given back since

    def stuck(self) -> bool:
        """The loop has not turned for STUCK_AFTER_S, and not for a step of an open epoch.

        A long step of the epoch in force is the master's to judge, which knows how long it
        should take; a step that outlives its epoch by so much hangs.
        """
        current, since = self._current, self._beat
        if current is not None:
            halted_at = current.links.halted_at
            if halted_at is None:
                return False
            since = max(since, halted_at)
        return time.monotonic() - since > STUCK_AFTER_S

    def run(self) -> Stop | Exchange:
        """Until one of these, which is returned, or until the device is broken."""
        waiting_since = time.perf_counter_ns()
        while not self.device_error:
            self._beat = time.monotonic()
            self._give_back_when_idle()
            try:
                work = self._inbox.get(timeout=BEAT_INTERVAL_S)
            except Empty:
                self._ask_the_device()
                continue
            if isinstance(work, Stop | Exchange):
                return work
            if isinstance(work, NewEpoch):
                self._reset()
                work.ready()
            elif work.links.open:
                self._current = work
                self._answer(work, waiting_since)
                self._beat = time.monotonic()
                self._current = None
                waiting_since = time.perf_counter_ns()
        return Stop(1)

    def _give_back_when_idle(self) -> None:
        if self._busy_at is not None and self._beat - self._busy_at > IDLE_AFTER_S:
            give_back_freed()
            self._model.give_back_unused()
            self._busy_at = None

    def _ask_the_device(self) -> None:
        try:
            self._device.ask()
        except Exception as error:  # whatever it says, it says it of itself
            self._break(f"failed while idle: {_told(error)}")

    def _break(self, what: str) -> None:
        self.device_error = f"rank {self._rank}: its device {self._place} {what}"
        self._end_process(self.device_error)

    def _reset(self) -> None:
        self._model.reset()
        self._forgotten.reset()
        if self._sampler is not None:
            self._sampler.reset()

    def _answer(self, arrival: Arrival, waiting_since: int) -> None:
        began = time.perf_counter_ns()
        wait_ns = began - waiting_since
        frame = arrival.frame
        if frame.header.aborted or self._forgotten.keep_from(frame.step):
            self._abort(arrival, began, wait_ns)
            return
        self._admitted.clear()
        outcome = self._attempt(arrival, began, wait_ns)
        if isinstance(outcome, _Failure) and outcome.kind is ErrorKind.MEMORY:
            outcome = self._attempt(arrival, began, wait_ns, again=True)
        if not isinstance(outcome, _Failure):
            self._forgotten.computed(frame.step)
            arrival.links.answer(arrival, *outcome)
        elif outcome.kind is ErrorKind.MEMORY:
            self._abort(arrival, began, wait_ns)
        else:
            self._give_up(arrival, outcome)

    def _abort(self, arrival: Arrival, began: int, wait_ns: int) -> None:
        """The step goes on without a tensor, so that it comes back in its turn."""
        frame, step = arrival.frame, arrival.frame.step
        self._forgotten.aborted(step)
        self._release((*step.releases, *(segment.request for segment in step.segments)))
        spent = StageTime(self._rank, time.perf_counter_ns() - began, wait_ns)
        if self._sampler is not None:
            front = encode_result(frame.header, frame.body, spent, (), aborted=True)
        else:
            front = pass_on_aborted(frame.header, frame.body, spent)
        arrival.links.answer(arrival, front, None)

    def _attempt(
        self, arrival: Arrival, began: int, wait_ns: int, *, again: bool = False
    ) -> _Answer | _Failure:
        """`again`: a step may be computed twice, since all that it changes is told by the step:
        keys, values and known ids are written by position, and a draw is a function of its
        position. Who was admitted stays so: the donor may be gone. The buffer that the step came in
        is not written to.
        """
        try:
            if again:
                self._device.give_back()
            with constructing:
                return self._compute(arrival, began, wait_ns)
        except Exception as error:
            logger.exception("step %d failed%s", arrival.frame.step.number, " again" * again)
            return _Failure(error_kind(error), _told(error))

    def _give_up(self, arrival: Arrival, failure: _Failure) -> None:
        arrival.links.halt()
        number = arrival.frame.step.number
        if failure.kind is ErrorKind.DEVICE:
            self._break(f"failed in step {number}: {failure.what}")
            return
        what = f"rank {self._rank} could not compute step {number}: {failure.what}"
        self._fail(arrival.links.epoch, what)

    @torch.inference_mode()
    def _compute(self, arrival: Arrival, began: int, wait_ns: int) -> _Answer:
        """The answer's frame and tensor: hidden states, or on the last stage sampled tokens."""
        frame, model = arrival.frame, self._model
        step = frame.step
        self._admit_and_release(step)
        if self._sampler is not None:
            self._sampler.extend(step)
        output = None
        if step.segments:
            output = model.forward(step, self._hidden(frame.tensor, frame.header.dtype))
            self._busy_at = time.monotonic()
        if self._sampler is not None:
            tokens = [] if output is None else self._sampler.sample(step, output)
            scored = []
            if step.scored_rows:
                with closing(model.scored_logits(step)) as parts:
                    scored = self._sampler.score(step, parts)
            spent = StageTime(self._rank, time.perf_counter_ns() - began, wait_ns)
            refused = self._sampler.take_refused()
            return encode_result(frame.header, frame.body, spent, tokens, scored, refused), None
        tensor, dtype, width = None, "", 0
        if output is not None:
            width, dtype = output.shape[-1], str(output.dtype).removeprefix("torch.")
            plain = output.reshape(-1, width).contiguous().to("cpu")
            tensor = plain.view(torch.uint8).numpy().data.cast("B")
        spent = StageTime(self._rank, time.perf_counter_ns() - began, wait_ns)
        return pass_on(frame.header, frame.body, spent, dtype, width), tensor

    def _admit_and_release(self, step: Step) -> None:
        # Whoever names a donor last may have its slot.
        donors = {item.donor: item.request for item in step.admissions if item.reused}
        self._release(request for request in step.releases if request not in donors)
        for admission in step.admissions:
            if admission.request in self._admitted:
                continue
            if self._sampler is not None:
                self._sampler.admit(admission)
            ends_donor = (
                admission.donor in step.releases
                and donors.get(admission.donor) == admission.request
            )
            self._model.admit(admission, ends_donor=ends_donor)
            self._admitted.add(admission.request)
        self._release(request for request in step.releases if request in donors)

    def _release(self, requests: Iterable[int]) -> None:
        holders = self._holders()
        for request in requests:
            for holder in holders:
                holder.release(request)

    def _holders(self) -> list[StageModel | Sampler]:
        return [self._model, *([] if self._sampler is None else [self._sampler])]

    def _hidden(self, tensor: memoryview, dtype: int) -> torch.Tensor | None:
        if not tensor:
            return None
        kind: torch.dtype = getattr(torch, DTYPES[dtype])
        flat = torch.frombuffer(tensor, dtype=kind)
        return flat.view(-1, self._model.hidden_size).to(self._place)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
