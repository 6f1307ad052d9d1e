"""Requests that come, go on, begin like others and end at random in a KV pool that is nearly full,
and what attention is of each of them alone, in tensors of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from runner.stage.model.kv_pool import KVPool, LayerShape
from runner.stage.model.packed_batch import PackedBatch, SeenKeys, Span, pack
from runner.stage.model.packed_step import AttentionRule, PackedStep

HEADS = 4
SHAPES = {
    0: LayerShape(2, 8, 2, 8),
    1: LayerShape(4, 8, 4, 8),
    2: LayerShape(1, 16, 1, 8),
    3: LayerShape(2, 8, 2, 8),
    4: LayerShape(2, 8, 2, 8),
    5: LayerShape(2, 8, 2, 8),
}
RULES = {
    0: AttentionRule(),
    1: AttentionRule(scaling=0.3),
    2: AttentionRule(),
    3: AttentionRule(window=5),
    4: AttentionRule(window=7, softcap=2.0),
    5: AttentionRule(sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
}
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Alone:
    """A request's keys and values [KV heads, capacity, size] by layer, `done` of them written."""

    capacity: int
    layers: dict[int, Pair]
    done: int = 0


@dataclass
class Layer:
    """What a layer is called with, [1, heads, tokens, size] each, and what is to come of it, the
    same rows [tokens, heads, value size]."""

    index: int
    rule: AttentionRule
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    expected: torch.Tensor


@dataclass
class RandomCompany:
    """A pool of `positions`, poisoned: what nobody wrote is NaN. At most `most` requests."""

    seed: int = 0
    positions: int = 150
    most: int = 6
    longest_chunk: int = 12
    dtype: torch.dtype = torch.float32
    requests: dict[int, Alone] = field(default_factory=dict)
    reused: int = 0

    def __post_init__(self) -> None:
        self._choice = random.Random(self.seed)
        self._random = torch.Generator().manual_seed(self.seed)
        self._next = 1
        self.pool = KVPool(SHAPES, self.dtype, torch.device("cpu"))
        self.pool.reserve(self.positions)

    def steps(self, count: int) -> Iterator[tuple[PackedBatch, list[Layer]]]:
        """Each to be computed before the next one is asked for."""
        for _ in range(count):
            self._release()
            while len(self.requests) < self.most and self._choice.random() < 0.6:
                self._admit()
            self._poison()
            spans = self._spans()
            if spans:
                lengths = {number: span.length for number, span in spans.items()}
                yield (
                    pack(spans.values()),
                    [self._layer(index, lengths) for index in SHAPES],
                )
            for number, span in spans.items():
                self.requests[number].done += span.length

    def _release(self) -> None:
        for number, request in list(self.requests.items()):
            over = request.done == request.capacity
            if self._choice.random() < (0.5 if over else 0.03):
                self._end(number)

    def _end(self, number: int) -> None:
        self.pool.release(number)
        del self.requests[number]

    def _admit(self) -> None:
        free = self.positions - sum(item.capacity for item in self.requests.values())
        donor = self._choice.choice([0, *self.requests])
        reused = self._choice.randint(0, self.requests[donor].done) if donor else 0
        ends = bool(reused) and self._choice.random() < 0.5
        most = free + (self.requests[donor].capacity if ends else 0)
        least = reused + 1
        if most < least:
            return
        number, self._next = self._next, self._next + 1
        capacity = self._choice.randint(least, min(most, max(least, 60)))
        alone = Alone(capacity, {index: self._own(index, capacity) for index in SHAPES}, reused)
        if reused:
            self.reused += 1
            self.pool.admit_after(number, capacity, donor, reused, ends_donor=ends)
            for index, pair in self.requests[donor].layers.items():
                for source, target in zip(pair, alone.layers[index], strict=True):
                    target[:, :reused] = source[:, :reused]
        else:
            self.pool.admit(number, capacity)
        if ends:
            self._end(donor)
        self.requests[number] = alone

    def _own(self, index: int, capacity: int) -> Pair:
        shape = SHAPES[index]
        return (
            torch.empty(shape.key_heads, capacity, shape.key_size, dtype=self.dtype),
            torch.empty(shape.value_heads, capacity, shape.value_size, dtype=self.dtype),
        )

    def _poison(self) -> None:
        written = torch.zeros(self.positions + 1, dtype=torch.bool)
        for number, request in self.requests.items():
            start = self.pool.slot(number, request.done).start
            assert not written[start : start + request.done].any(), "slots overlap"
            written[start : start + request.done] = True
        for pair in self.pool.layers.values():
            for tensor in pair:
                tensor[:, ~written] = float("nan")

    def _spans(self) -> dict[int, Span]:
        spans: dict[int, Span] = {}
        first = 0
        for number, request in self.requests.items():
            left = request.capacity - request.done
            if not left or self._choice.random() < 0.2:
                continue
            length = self._choice.choice([1, 1, self._choice.randint(1, self.longest_chunk)])
            length = min(length, left)
            slot = self.pool.slot(number, request.done + length)
            slot.written = request.done + length
            spans[number] = Span(first, length, request.done, slot.start)
            first += length
        return spans

    def _layer(self, index: int, lengths: dict[int, int]) -> Layer:
        shape, tokens = SHAPES[index], sum(lengths.values())
        query, key, value = (
            torch.randn(1, tokens, heads, size, generator=self._random).to(self.dtype)
            for heads, size in (
                (HEADS, shape.key_size),
                (shape.key_heads, shape.key_size),
                (shape.value_heads, shape.value_size),
            )
        )
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        parts, first = [], 0
        for number, length in lengths.items():
            rows = slice(first, first + length)
            parts.append(
                self._attend(number, index, query[0, :, rows], key[0, :, rows], value[0, :, rows])
            )
            first += length
        expected = torch.cat(parts, dim=1).transpose(0, 1)
        return Layer(index, RULES[index], query, key, value, expected)

    def _attend(
        self,
        number: int,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """Of one request by itself, in a slot of its own: [heads, tokens, value size]."""
        request, rule = self.requests[number], RULES[index]
        start, tokens = request.done, query.shape[1]
        end = start + tokens
        keys, values = request.layers[index]
        keys[:, start:end], values[:, start:end] = key, value
        begin = 0 if rule.window is None else max(0, start + 1 - rule.window)
        keys, values = keys[:, begin:end], values[:, begin:end]
        mask = None
        if tokens > 1:
            mask = mask_of(torch.arange(start, end), torch.arange(begin, end), rule.window)
            mask = mask.to(self.dtype)
        if rule.softcap is not None or rule.sinks is not None:
            return by_hand(query, keys, values, mask, rule)
        whole = tokens > 1 and start == 0 and (rule.window is None or tokens <= rule.window)
        rows = query.reshape(len(keys), -1, keys.shape[-1]) if tokens == 1 else query
        result = functional.scaled_dot_product_attention(
            rows[None],
            keys[None],
            values[None],
            attn_mask=None if whole else mask,
            is_causal=whole,
            scale=rule.scaling,
            enable_gqa=len(rows) != len(keys),
        )[0]
        return result.reshape(HEADS, 1, -1) if tokens == 1 else result


def packed_step(pool: KVPool, batch: PackedBatch) -> PackedStep:
    cu_q, starts, used = (
        torch.tensor(part, dtype=torch.int32) for part in (batch.cu_q, batch.starts, batch.used)
    )
    seen = SeenKeys(starts, used, batch.max_k)
    return PackedStep(pool, batch, torch.tensor(batch.slots), cu_q, seen)


def mask_of(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """Additive, by the positions of rows and keys."""
    ahead = keys[None, :] > queries[:, None]
    if window is not None:
        ahead |= keys[None, :] <= queries[:, None] - window
    return torch.zeros(ahead.shape).masked_fill_(ahead, float("-inf"))


def by_hand(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    rule: AttentionRule,
) -> torch.Tensor:
    """query [heads, tokens, size], keys [KV heads, length, size]; [heads, tokens, value size]."""
    heads, tokens, size = query.shape
    grouped = query.reshape(len(keys), -1, size)
    scores = (grouped @ keys.transpose(1, 2)) * (rule.scaling or size**-0.5)
    scores = scores.view(heads, tokens, -1)
    if rule.softcap is not None:
        scores = (scores / rule.softcap).tanh() * rule.softcap
    if mask is not None:
        scores = scores + mask
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype)[:, None, None].expand(heads, tokens, 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32)[..., : keys.shape[1]].to(query.dtype)
    result = weights.reshape(len(keys), -1, keys.shape[1]) @ values
    return result.view(heads, tokens, -1)
