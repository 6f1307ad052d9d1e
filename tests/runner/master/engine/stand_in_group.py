"""A rank group in one process: no torch, tokens that are a function of what a request is."""

from __future__ import annotations

import asyncio
import hashlib

from contract.specs import GroupSpec, RankPart
from runner.master.group.formation import Formation, GroupListener
from runner.master.group.history import History
from runner.master.group.swap import Swap
from runner.steps import Admission, SampledToken, StageTime, Step, StepResult
from runner.transport.control import Join, Served, StageInfo

VOCABULARY = 49152  # the demo model's, whose tokenizer some tests use
SAMPLED_BELOW = 1000
COMMIT = "the-stand-ins"


def next_token(ids: list[int], seed: int, choice: int) -> int:
    """What the stand-in samples after `ids`: any change of its inputs changes it."""
    text = f"{ids}/{seed}/{choice}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") % SAMPLED_BELOW


def expected_tokens(prompt: tuple[int, ...], count: int, seed: int, choice: int = 0) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids, seed, choice))
    return ids[len(prompt) :]


class Pipeline:
    """What the stages of one epoch hold: checks every rule of Step and samples."""

    def __init__(self, kv_tokens: int) -> None:
        self.kv_tokens = kv_tokens
        self.held: dict[int, tuple[Admission, list[int]]] = {}
        self.most_reserved = 0

    def run(self, step: Step) -> list[SampledToken]:
        donors = {admission.donor for admission in step.admissions if admission.reused}
        for request in step.releases:
            if request not in donors:
                self.held.pop(request, None)
        for admission in step.admissions:
            reused = self.held[admission.donor][1][: admission.reused] if admission.reused else []
            assert len(reused) == admission.reused
            self.held[admission.request] = (admission, reused)
        for request in step.releases:
            self.held.pop(request, None)
        reserved = sum(admission.capacity for admission, _ in self.held.values())
        assert reserved <= self.kv_tokens
        self.most_reserved = max(self.most_reserved, reserved)
        tokens, start = [], 0
        for segment in step.segments:
            admission, ids = self.held[segment.request]
            assert segment.start == len(ids)
            ids += step.token_ids[start : start + segment.length]
            start += segment.length
            assert len(ids) <= admission.capacity
            assert segment.total >= len(ids)
            if segment.sample:
                assert segment.total == len(ids)
                token = next_token(ids, admission.seed, admission.choice)
                reported = admission.sampling.logprobs
                tokens.append(
                    SampledToken(
                        segment.request,
                        len(ids),
                        token,
                        -token / 100 if reported >= 0 else None,
                        tuple((token + other, -other / 10) for other in range(reported)),
                    )
                )
        assert start == len(step.token_ids)
        return tokens


class StandInGroup:
    """A RankGroup. Steps come back in order, `delay_s` after one another."""

    listener: GroupListener  # is set once there is one

    def __init__(
        self,
        *,
        ranks: int = 2,
        kv_tokens: int = 4096,
        max_positions: int = 0,
        rope_boundary: int | None = None,
        delay_s: float = 0.0,
        spec: GroupSpec | None = None,
    ) -> None:
        parts = tuple(RankPart((rank, rank + 1)) for rank in range(ranks))
        self.served = Served(spec or GroupSpec("test", "model", parts), COMMIT)
        self.swap: Swap | None = None
        self.proofs: list[str] = []
        self.ranks, self.delay_s = ranks, delay_s
        self.kv_tokens, self.rope_boundary = kv_tokens, rope_boundary
        self.max_positions = max_positions or kv_tokens
        self.state, self.reason = "starting", "waiting for ranks"
        self.history = History(0.0)
        self.progress = 0
        self.steps: list[Step] = []
        self.pipeline = Pipeline(kv_tokens)
        self.frozen = self.frozen_segments = False
        self.abandoned: list[str] = []
        self.retry_after_s = 1
        self.deadly: set[int] = set()  # token ids; a stage dies of a step that has one
        self._queue: list[Step] = []
        self._running: asyncio.Task[None] | None = None

    async def push(self, spec: GroupSpec) -> Swap | None:
        raise NotImplementedError

    def answered(self) -> None:
        self.proofs.append("")

    def not_answered(self, reason: str) -> None:
        self.proofs.append(reason)

    def joins(self) -> tuple[Join | None, ...]:
        return tuple(
            Join(f"process {rank}", 100 + rank, "127.0.0.1", 3001, "", "cpu")
            for rank in range(self.ranks)
        )

    def stages(self) -> tuple[StageInfo | None, ...]:
        return tuple(
            StageInfo(
                rank=rank,
                address="127.0.0.1",
                data_port=3001,
                layers=(rank, rank + 1),
                weight_bytes=1000,
                kv_bytes_per_token=8,
                kv_tokens=self.kv_tokens + rank,
                hidden_size=8,
                vocab_size=VOCABULARY,
                max_positions=self.max_positions,
                rope_boundary=self.rope_boundary,
                commit=COMMIT,
                dtype="float32",
                device="cpu",
                process_id=100 + rank,
            )
            for rank in range(self.ranks)
        )

    def form(self, *, trial: bool = False) -> None:
        self.history.trying()
        self.history.formed(0.0)
        self.state, self.reason = "ready", ""
        self.pipeline = Pipeline(self.kv_tokens)
        stages = tuple(stage for stage in self.stages() if stage is not None)
        self.listener.group_formed(Formation(self.history.epoch, stages, self.served, trial))

    def lose(self, reason: str = "rank 1: killed", *, announced: bool = False) -> None:
        self.state, self.reason = "starting", reason
        self._queue.clear()
        self.history.epoch_lost(reason, 0.0)
        self.listener.group_lost(reason, announced=announced)

    def fail(self, reason: str) -> None:
        """Lost once too often: it waits before it tries again."""
        self.lose(reason)
        self.state, self.retry_after_s = "failed", 20

    def submit(self, step: Step) -> None:
        assert self.state == "ready"
        self.steps.append(step)
        self._queue.append(step)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._queue:
            # What is frozen takes time, or no other time would pass where it is virtual.
            held = self.frozen or self.frozen_segments
            await asyncio.sleep(max(self.delay_s, 0.001) if held else self.delay_s)
            if self._queue and not self.frozen:
                if self.frozen_segments and self._queue[0].segments:
                    continue  # a probe before it has passed, this does not
                step = self._queue.pop(0)
                if self.deadly.intersection(step.token_ids):
                    self._queue.insert(0, step)
                    self.lose(f"rank 1: died of step {step.number}")
                    asyncio.get_running_loop().call_soon(self.form)
                    continue
                times = tuple(StageTime(rank, 1_000_000, 0) for rank in range(self.ranks))
                tokens = tuple(self.pipeline.run(step))
                self.listener.step_returned(StepResult(step.number, tokens, times))

    @property
    def holds_only_kept(self) -> bool:
        """Nothing of a request that has ended but what others may begin with."""
        donors = self.listener._scheduler.donors  # type: ignore[attr-defined]
        held = self.pipeline.held
        places = sum(admission.capacity for admission, _ in held.values())
        return held.keys() == donors._kept.keys() and places == donors.places

    def abandon_epoch(self, reason: str) -> None:
        self.abandoned.append(reason)
        self.lose(reason)

    def note_progress(self) -> None:
        self.progress += 1
