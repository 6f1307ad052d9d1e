"""Model shape + memory per rank -> layer range per rank, bytes, KV budget, share of a step. Pure.

A step's time is taken as weight bytes / rank speed: decoding reads every weight once and little
else. The layers are cut where the slowest rank is fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from contract.memory import MemoryShare
from contract.models import TIED_COPY_LIMIT_BYTES
from infra.plan.model_shape import DTYPE_BYTES, ModelShape


class PlanError(ValueError):
    """The model does not go onto these ranks; the message names the rank, the bytes, a way out."""


@dataclass(frozen=True)
class RankResources:
    """What a rank brings. `memory_bytes` None: not checked. `speed` is relative to the others.

    `packs`: a CPU, whose stage packs its weights.
    """

    memory_bytes: int | None = None
    speed: float = 1.0
    layers: tuple[int, int] | None = None
    packs: bool = False


@dataclass(frozen=True)
class RankPlan:
    """One rank's part. `layers` is [first, one past last]; None = not known.

    `file_bytes` is what it fetches at most: files hold other ranks' layers too. `largest_bytes`:
    no tensor of it is larger, nor what is made of one.
    """

    rank: int
    layers: tuple[int, int]
    weight_bytes: int | None
    kv_bytes_per_token: int | None
    kv_budget_bytes: int | None
    kv_budget_tokens: int | None
    step_share: float | None
    file_bytes: int | None = None
    largest_bytes: int | None = None

    @property
    def memory_share(self) -> MemoryShare | None:
        """What the rule of contract/memory.py wants to know of it; None: not known."""
        if self.weight_bytes is None or self.kv_bytes_per_token is None:
            return None
        return MemoryShare(self.rank, self.layers, self.weight_bytes, self.kv_bytes_per_token)


def plan_layers(
    shape: ModelShape, resources: Sequence[RankResources], dtype: str, max_model_len: int | None
) -> tuple[RankPlan, ...]:
    """Exact: no other cut into contiguous ranges has a faster slowest rank.

    Layers that `resources` give are kept. `dtype` is a key of DTYPE_BYTES; `max_model_len` None
    takes the model's own maximum. Raises PlanError.
    """
    partition = _Partition(shape, resources, DTYPE_BYTES[dtype], max_model_len)
    ranges = partition.solve()
    times = [partition.time(rank, *layers) for rank, layers in enumerate(ranges)]
    return tuple(
        partition.rank_plan(rank, layers, times[rank] / sum(times))
        for rank, layers in enumerate(ranges)
    )


class _Partition:
    """Dynamic programme over (rank, first layer not yet placed)."""

    def __init__(
        self,
        shape: ModelShape,
        resources: Sequence[RankResources],
        bytes_per_value: int,
        max_model_len: int | None,
    ) -> None:
        self.shape, self.resources = shape, resources
        self.bytes_per_value = bytes_per_value
        self.tokens = max_model_len or shape.max_positions or 1
        self._weights = _running_sums(shape.layer_parameters)
        self._kv = _running_sums(shape.kv_values_per_token)

    def solve(self) -> list[tuple[int, int]]:
        count, layers = len(self.resources), self.shape.num_layers
        if count > layers:
            raise PlanError(
                f"nnodes = {count}: the model has {layers} layers and each rank needs one; "
                f"take at most {layers} ranks"
            )
        self._refuse_foreign_layers()
        # slowest[rank][end]: the least time of the slowest of ranks 0..rank over layers 0..end-1
        infinity = float("inf")
        slowest = [[infinity] * (layers + 1) for _ in range(count)]
        starts = [[0] * (layers + 1) for _ in range(count)]
        for rank in range(count):
            for end in range(rank + 1, layers - (count - rank - 1) + 1):
                for start in range(rank, end) if rank else (0,):
                    before = slowest[rank - 1][start] if rank else 0.0
                    if before == infinity or not self._allowed(rank, start, end):
                        continue
                    time = max(before, self.time(rank, start, end))
                    if time < slowest[rank][end]:
                        slowest[rank][end], starts[rank][end] = time, start
        if slowest[-1][layers] == infinity:
            raise PlanError(self._why_nothing_fits())
        ranges = [(0, 0)] * count
        end = layers
        for rank in reversed(range(count)):
            ranges[rank] = (starts[rank][end] if rank else 0, end)
            end = ranges[rank][0]
        return ranges

    def time(self, rank: int, start: int, end: int) -> float:
        return self._read_bytes(rank, start, end) / self.resources[rank].speed

    def rank_plan(self, rank: int, layers: tuple[int, int], share: float) -> RankPlan:
        held, memory = self._held(rank, *layers), self.resources[rank].memory_bytes
        budget = None if memory is None else held.kv_bytes(memory)
        tokens = None if memory is None else held.kv_tokens(memory)
        weights, kv_per_token = held.weight_bytes, held.kv_bytes_per_token
        largest = self._largest_bytes(rank, *layers)
        return RankPlan(
            rank, layers, weights, kv_per_token, budget, tokens, share, largest_bytes=largest
        )

    def _largest_bytes(self, rank: int, start: int, end: int) -> int:
        """A whole layer counts as one: experts are stacked."""
        parameters = [*self.shape.layer_parameters[start:end]]
        if rank == 0:
            parameters.append(self.shape.embedding_parameters)
        if rank == len(self.resources) - 1:
            parameters.append(self.shape.head_parameters)
        return max(parameters) * self.bytes_per_value

    def weight_bytes(self, rank: int, start: int, end: int) -> int:
        parameters = self._weights[end] - self._weights[start]
        last = rank == len(self.resources) - 1
        if rank == 0:
            parameters += self.shape.embedding_parameters
        if last:
            parameters += self.shape.end_parameters
            parameters += self._held_head(rank)
        return parameters * self.bytes_per_value

    def _held_head(self, rank: int) -> int:
        """One rank alone looks rows up in a tied embedding too, which is then its head as well."""
        head = self.shape.head_parameters
        if rank > 0 or not self.shape.tied:
            return head
        copied = head * self.bytes_per_value <= TIED_COPY_LIMIT_BYTES
        return head if self.resources[rank].packs and copied else 0

    def _read_bytes(self, rank: int, start: int, end: int) -> int:
        """Weights that a decode step reads: of the embedding only single rows."""
        parameters = self._weights[end] - self._weights[start]
        if rank == len(self.resources) - 1:
            parameters += self.shape.end_parameters + self.shape.head_parameters
        return parameters * self.bytes_per_value

    def _held(self, rank: int, start: int, end: int) -> MemoryShare:
        kv_per_token = (self._kv[end] - self._kv[start]) * self.bytes_per_value
        weights = self.weight_bytes(rank, start, end)
        return MemoryShare(rank, (start, end), weights, kv_per_token)

    def _fits(self, rank: int, start: int, end: int) -> bool:
        memory = self.resources[rank].memory_bytes
        return memory is None or self._held(rank, start, end).fits(memory, self.tokens)

    def _allowed(self, rank: int, start: int, end: int) -> bool:
        given = self.resources[rank].layers
        return (given is None or given == (start, end)) and self._fits(rank, start, end)

    def _refuse_foreign_layers(self) -> None:
        total, last = self.shape.num_layers, len(self.resources) - 1
        for rank, resources in enumerate(self.resources):
            if resources.layers is None:
                continue
            start, end = resources.layers
            shown = f'rank {rank}: layers "{start}-{end - 1}"'
            if end > total:
                raise PlanError(f"{shown}: the model has layers 0-{total - 1}")
            if rank == last and end != total:
                raise PlanError(f"{shown}: the last rank must end with layer {total - 1}")
            if total - end < last - rank:
                raise PlanError(
                    f"{shown}: leaves no layer for each of the {last - rank} ranks after"
                )

    def _why_nothing_fits(self) -> str:
        """The first rank that cannot take even what is fixed, else the sum over all."""
        for rank, resources in enumerate(self.resources):
            start, end = resources.layers or self._smallest(rank)
            if not self._fits(rank, start, end):
                return self._does_not_fit(rank, start, end)
        gaps = [item.layers for item in self.resources if item.layers]
        if gaps and all(item.memory_bytes is None for item in self.resources):
            return "layers: the ranges given leave a gap that the other ranks cannot fill"
        return self._does_not_fit(*self._tightest())

    def _smallest(self, rank: int) -> tuple[int, int]:
        return (self.shape.num_layers - 1, self.shape.num_layers) if rank else (0, 1)

    def _tightest(self) -> tuple[int, int, int]:
        """Of the cut that ignores memory, the rank that lacks the most."""
        free = [RankResources(None, item.speed, item.layers, item.packs) for item in self.resources]
        ranges = _Partition(self.shape, free, self.bytes_per_value, self.tokens).solve()
        lacking = [
            self._held(rank, *layers).needed_bytes(self.tokens)
            - (self.resources[rank].memory_bytes or 2**63)
            for rank, layers in enumerate(ranges)
        ]
        rank = lacking.index(max(lacking))
        return rank, *ranges[rank]

    def _does_not_fit(self, rank: int, start: int, end: int) -> str:
        memory = self.resources[rank].memory_bytes
        assert memory is not None, "a rank whose memory is not known takes everything"
        return self._held(rank, start, end).refusal(memory, self.tokens)


def _running_sums(values: Sequence[int]) -> list[int]:
    sums = [0]
    for value in values:
        sums.append(sums[-1] + value)
    return sums
