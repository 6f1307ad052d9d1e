"""The engine: requests in, token events out, whatever happens to the group in between."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import closing
from dataclasses import replace

from contract.memory import fillable_tokens
from contract.specs import GroupSpec
from runner.errors import (
    DeadlineExceeded,
    EngineFull,
    InvalidField,
    NotServing,
    PromptTooLong,
    RequestEndsTheGroup,
    RunnerError,
)
from runner.master.engine.gate import Gate
from runner.master.engine.micro_batches import MicroBatches
from runner.master.engine.report import EngineStatistics, describe_topology, take_statistics
from runner.master.engine.requests import (
    Event,
    GenerationRequest,
    OpenRequest,
    RequestLedger,
    TokenEvent,
)
from runner.master.engine.scheduler import Scheduler
from runner.master.engine.step_cost import StepCost
from runner.master.engine.tokens import Tokens
from runner.master.engine.watch import Watch
from runner.master.group.formation import Formation, RankGroup
from runner.master.group.swap import Swap
from runner.master.own_fault import OnFault, own_work, raise_fault
from runner.sampling_parameters import SamplingParameters
from runner.steps import Step, StepResult
from runner.transport.control import Served, StageInfo

logger = logging.getLogger(__name__)

WAITING_PER_RUNNING = 4


class Engine:
    """Owns the ledger and each epoch's scheduler; the group's listener. All on one event loop.

    A fault in what it does by itself, for no request in particular, goes to `on_fault`.
    """

    def __init__(self, group: RankGroup, *, on_fault: OnFault = raise_fault) -> None:
        self._group, self._on_fault = group, on_fault
        self._ledger = RequestLedger()
        self._cost = StepCost(0)
        self._micro_batches = MicroBatches(self._cost)
        self._scheduler: Scheduler | None = None
        self._counters = EngineStatistics()
        self._formation: Formation | None = None
        self._watch = Watch(group, submit=self._submit, on_fault=on_fault)
        self._turned = False
        self._pump_due = False
        self.gate = Gate()
        self._proof: asyncio.Task[None] | None = None
        self.max_model_len: int | None = None

    # What the API asks

    @property
    def in_force(self) -> Served | None:
        """What the group serves, or forms to serve; None while nobody has said."""
        return self._group.served

    @property
    def ready(self) -> bool:
        """All ranks of this epoch are loaded, a step has gone round, and none is overdue."""
        return self._turned and self._group.state == "ready"

    @property
    def state(self) -> str:
        """The group's: starting, forming, ready or failed (it waits before it tries again)."""
        return self._group.state

    @property
    def reason(self) -> str:
        return self._group.reason or "the first step of this epoch has not come back"

    @property
    def retry_after_s(self) -> int:
        """In how many seconds to ask again while not ready."""
        return self._group.retry_after_s

    @property
    def context(self) -> int:
        """max_model_len, which the first group tells; raises NotServing before."""
        if self.max_model_len is None:
            raise self._not_formed()
        return self.max_model_len

    @property
    def model_commit(self) -> str:
        """Of the weights that compute; raises NotServing before the first group has formed."""
        return self._stages()[0].commit

    @property
    def vocabulary_size(self) -> int:
        """How many ids the stages know, more than the tokenizer where their table is padded;
        raises NotServing before the first group has formed."""
        return min(stage.vocab_size for stage in self._stages())

    @property
    def swap(self) -> Swap | None:
        """Of the group's spec: the one that runs, or the last one."""
        return self._group.swap

    async def push(self, spec: GroupSpec) -> Swap | None:
        """Serve another spec: the swap that is made of it, None where it is in force now; raises
        SwapRunning, NotServing."""
        return await self._group.push(spec)

    async def let_in(self, limit_s: float) -> None:
        """Wait while the weights are exchanged; raises DeadlineExceeded, EngineFull."""
        while self.gate.closed:
            await self.gate.opened(limit_s, (1 + WAITING_PER_RUNNING) * self._running)

    def validate(self, request: GenerationRequest) -> None:
        """What the formed group cannot compute; raises InvalidField, PromptTooLong, NotServing.

        Lengths are judged where text becomes a request, and here again: a group may have formed
        since then with a smaller cache.
        """
        prompt_tokens = len(request.prompt_ids)
        needed = prompt_tokens + request.max_new_tokens
        assert 0 < prompt_tokens < needed + request.echo
        context, vocabulary = self.context, self.vocabulary_size
        for token_id in (min(request.prompt_ids), max(request.prompt_ids)):
            if not 0 <= token_id < vocabulary:
                rule = f"must be a token id from 0 to {vocabulary - 1}, the vocabulary's last"
                raise InvalidField("prompt", token_id, rule)
        if needed > context:
            rule = (
                f"with the prompt's {prompt_tokens} tokens makes {needed}; "
                f"the model's context is {context} tokens"
            )
            raise PromptTooLong("max_tokens", request.max_new_tokens, rule)

    def check_place(self, choices: int = 1, *, domain: str = "", carried: bool = False) -> None:
        """Raises NotServing, EngineFull, InvalidField for more choices than there will ever be
        places: cheap, so that an overload costs little a refusal.

        Who is carried was admitted before. New requests that were quicker after a restart may have
        taken all places, so that there are as many again for those that the process before had.

        When all places are taken, a `domain` that stays within its share of them is let in all the
        same: nobody alone can keep the others out. So many domains as there are, n, take at most
        1 + 1/2 + ... + 1/n times the places.
        """
        if self._group.state == "failed" or self._watch.forming_for_too_long:
            raise NotServing(self.reason, self.retry_after_s)
        running = self._running
        waiting = running * WAITING_PER_RUNNING
        if choices > running + waiting:
            rule = (
                f"must be at most {running + waiting} for all prompts together: {running} run and"
                f" {waiting} wait"
            )
            raise InvalidField("n", f"{choices} choices", rule)
        places = (running + waiting) * (2 if carried else 1)
        if len(self._ledger.open) + choices > places:
            own, domains = self._ledger.places_of(domain)
            if domains > 1 and own + choices <= places // domains:
                return
            raise EngineFull(f"{running} requests run and {waiting} wait: try again later")

    def generate(self, request: GenerationRequest) -> Tokens:
        """Enter the request now; its tokens come as they are computed. Whoever gets them closes
        them: that frees the request's place at once, also where no token was ever asked for.

        Raises what `validate` does, EngineFull, NotServing. The tokens raise DeadlineExceeded,
        NotServing, NoMemory, PromptTooLong, RequestEndsTheGroup.
        """
        self.validate(request)
        self.check_place(domain=request.domain, carried=request.carried is not None)
        arrived: asyncio.Queue[Event | RunnerError] = asyncio.Queue()
        entry = self._ledger.add(request, arrived.put_nowait)
        self._counters.requests += 1
        given = request.deadline_s
        limit_s = self._spec.request_deadline_s if given is None else given
        loop = asyncio.get_running_loop()

        def overdue() -> None:
            # Whoever asks for the tokens may be waiting for a client that does not read.
            self._end(entry)
            why = "" if self.ready else f": {self.reason}"
            late = DeadlineExceeded(f"not finished within its deadline of {limit_s:g} s{why}")
            arrived.put_nowait(late)

        deadline = loop.call_later(limit_s, overdue)
        if self._scheduler is not None:
            self._scheduler.submit(entry)
            self._pump_soon()

        def leave() -> None:
            deadline.cancel()
            self._end(entry)

        return Tokens(arrived, leave, lambda: entry.reused)

    def statistics(self) -> EngineStatistics:
        """Counters since the start, and the present."""
        known = replace(
            self._counters,
            ready=self.ready,
            failed=self.state == "failed",
            waiting=len(self._ledger.open),
            held=self.gate.waiting,
        )
        return take_statistics(known, self._group, self._cost, self._scheduler)

    def topology(self) -> dict[str, object]:
        """The ranks, the steps among them, and how it stands with the group."""
        return describe_topology(self._group, self.statistics(), self._scheduler) | {
            "state": self.state,
            "reason": "" if self.ready else self.reason,
            "max_model_len": self.max_model_len,
        }

    # What the group tells

    def requests_wait(self, waits: bool) -> None:
        if waits:
            self.gate.close()
        else:
            self.gate.open()

    def must_be_waited_for(self, in_time: bool) -> bool:
        return self.gate.entering > 0 or (in_time and bool(self._ledger.open))

    def end_open(self, error: RunnerError) -> None:
        for entry in list(self._ledger.open.values()):
            self._end(entry)
            entry.deliver(error)

    def take(self, served: Served) -> None:
        """Limits only: weights, context and what is in the pipeline stay as they are."""
        if self._formation is None or self._scheduler is None:
            return
        self._formation = replace(self._formation, served=served)
        self._scheduler.take(
            prefill_token_budget=served.spec.prefill_token_budget,
            max_concurrent_requests=served.spec.max_concurrent_requests,
            fillable=_fillable(self._formation),
        )
        self._pump_soon()

    def group_formed(self, formation: Formation) -> None:
        stages, spec = formation.stages, formation.served.spec
        kv_tokens, asked = min(stage.kv_tokens for stage in stages), _longest(formation)
        if kv_tokens < asked:
            sentence = (
                "the KV cache of the smallest rank holds %d tokens: requests may have no more"
            )
            logger.warning(sentence + ", the model's context is %d", kv_tokens, asked)
        self.max_model_len = min(asked, kv_tokens)
        before, self._formation = self._formation, formation
        if before is None or _weights(before) != _weights(formation):
            self._cost = StepCost(len(stages))
            self._micro_batches = MicroBatches(self._cost)
        self._turned = False
        self._scheduler = Scheduler(
            ranks=len(stages),
            prefill_token_budget=spec.prefill_token_budget,
            max_concurrent_requests=spec.max_concurrent_requests,
            kv_tokens=kv_tokens,
            fillable=_fillable(formation),
            rope_boundary=stages[0].rope_boundary,
            cost=self._cost,
            micro_batches=self._micro_batches,
        )
        for entry in self._ledger.in_turn():
            self._enter_again(entry, self._scheduler)
        self._submit(self._scheduler.probe(time.monotonic()))
        self._pump()
        self._watch.formed(self._scheduler)
        if formation.trial:
            self._proof = asyncio.get_running_loop().create_task(self._prove())

    @own_work
    def step_returned(self, result: StepResult) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        now = time.monotonic()
        self._turned = True
        self._watch.step_returned(now)
        events = scheduler.returned(result, now)
        for entry, event in events:
            if isinstance(event, RunnerError) or event.finish_reason is not None:
                self._ledger.remove(entry.number)
                scheduler.remove(entry)
            entry.deliver(event)
        self._counters.generated_tokens += sum(isinstance(event, TokenEvent) for _, event in events)
        if events or not self._ledger.open:
            # Of an idle group nothing is asked but to pass its probes. A request that ends one
            # epoch after the other stays open, and then probes do not count.
            self._group.note_progress()
        self._pump()

    def group_lost(self, reason: str, *, announced: bool) -> None:
        logger.warning("the group is lost: %s; %d open requests", reason, len(self._ledger.open))
        if self._scheduler is not None and not announced:
            for entry in self._ledger.blame(self._scheduler.being_computed()):
                self._end_culprit(entry)
        self._scheduler, self._turned = None, False
        if self._proof is not None:
            self._proof.cancel()
            self._proof = None
        for entry in self._ledger.open.values():
            entry.start_over()
        self._watch.lost()

    # Inside

    async def _prove(self) -> None:
        """New weights compute one token before they are in force."""
        sampling = SamplingParameters(temperature=0, seed=0)
        try:
            with closing(self.generate(GenerationRequest((0,), 1, sampling))) as tokens:
                async for _ in tokens:
                    pass
        except RunnerError as error:
            self._group.not_answered(f"its first token could not be computed: {error}")
        else:
            self._group.answered()

    @property
    def _running(self) -> int:
        """How many requests run at the same time, by the spec in force."""
        served = self._group.served
        return (
            self._spec.max_concurrent_requests
            if served is None
            else (served.spec.max_concurrent_requests)
        )

    @property
    def _spec(self) -> GroupSpec:
        if self._formation is None:
            raise self._not_formed()
        return self._formation.served.spec

    def _stages(self) -> tuple[StageInfo, ...]:
        if self._formation is None:
            raise self._not_formed()
        return self._formation.stages

    def _not_formed(self) -> NotServing:
        return NotServing(f"the rank group has not formed yet: {self.reason}")

    def _end_culprit(self, entry: OpenRequest) -> None:
        """The group was lost once more, and nothing else was being computed."""
        name = entry.request_id or f"number {entry.number}"
        sentence = "request %s ends the group: it is not tried again; its prompt has %d tokens"
        fields = {"request_id": entry.request_id}
        logger.error(sentence, name, len(entry.prompt_ids), extra={"fields": fields})
        # With it goes what kept the group from its tokens.
        self._group.note_progress()
        entry.deliver(
            RequestEndsTheGroup(
                f"the rank group was lost {entry.losses} times in a row while this request was"
                " computed, the last time with nothing beside it: it is not tried again"
            )
        )

    def _enter_again(self, entry: OpenRequest, scheduler: Scheduler) -> None:
        """A restarted stage may have less room than before: what can never fit must not stand at
        the head of the queue."""
        try:
            scheduler.check(len(entry.prompt_ids), entry.max_new_tokens)
        except PromptTooLong as error:
            self._ledger.remove(entry.number)
            entry.deliver(error)
            return
        self._group.history.replays += bool(entry.emitted)
        scheduler.submit(entry)

    @own_work
    def _end(self, entry: OpenRequest) -> None:
        """The client has what it wanted, or left."""
        if self._ledger.remove(entry.number) is not None and self._scheduler is not None:
            self._scheduler.remove(entry)
            self._pump_soon()

    def _pump_soon(self) -> None:
        """Requests that arrive in the same turn of the loop start in the same step."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    @own_work
    def _pump(self) -> None:
        self._pump_due = False
        # A group that has just lost its epoch says so in its state first, and tells us after.
        while self._scheduler is not None and self._group.state == "ready":
            step = self._scheduler.next_step(time.monotonic())
            if step is None:
                return
            self._submit(step)

    def _submit(self, step: Step) -> None:
        self._counters.steps += 1
        for admission in step.admissions:
            self._counters.reused_tokens += admission.reused
            self._counters.admitted_tokens += self._ledger.open[admission.request].known
        self._group.submit(step)


def _longest(formation: Formation) -> int:
    """Positions of a request, by the model and the spec."""
    longest = min(stage.max_positions for stage in formation.stages)
    return min(longest, formation.served.spec.max_model_len or longest)


def _fillable(formation: Formation) -> int:
    return fillable_tokens(
        min(stage.kv_tokens for stage in formation.stages),
        requests=formation.served.spec.max_concurrent_requests,
        longest=_longest(formation),
    )


def _weights(formation: Formation) -> list[tuple[object, ...]]:
    """What decides how long steps take."""
    return [(stage.commit, stage.layers, stage.dtype) for stage in formation.stages]
