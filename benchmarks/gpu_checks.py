"""Parts of `python -m benchmarks.gpu` that say whether answers are right, on any device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from runner.stage.model import attention_by_request
from runner.stage.model.attention_kind import AttentionKind, attention_kind, capability_of
from runner.stage.model.flash_attention import flash_attention
from runner.stage.model.kv_pool import KVPool, LayerShape
from runner.stage.model.packed_batch import PackedBatch, Span, pack
from runner.stage.model.packed_step import AttentionRule, StepInputs

LARGEST_ERROR = 1e-2  # of the result's norm, in half precision
FILL = 0.95


@dataclass(frozen=True)
class Sizes:
    """An 8 B Llama's layers, eight of them; positions, rows, steps and bytes that are measured."""

    hidden: int = 4096
    intermediate: int = 14336
    layers: int = 8
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128256
    context: int = 1000
    rows: tuple[int, ...] = (1, 8, 32, 128)
    steps: int = 50
    admissions: int = 500
    positions: int = 150_000
    copied_bytes: int = 2**30
    dtype: torch.dtype = torch.bfloat16

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def shape(self) -> LayerShape:
        return LayerShape(self.kv_heads, self.head_size, self.kv_heads, self.head_size)


@dataclass(frozen=True)
class Finding:
    """A figure with its unit, and whether it is what it has to be."""

    what: str
    value: float
    unit: str
    passed: bool

    def sentence(self) -> str:
        figure = f": {self.value:.4g} {self.unit}".rstrip() if self.unit else ""
        return f"{'passed' if self.passed else 'MISSED'}  {self.what}{figure}"


def make_model(folder: Path, device: torch.device, sizes: Sizes) -> Path:
    """Random weights; the head shares the embedding's, so that each step reads all of them."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=max(4096, 2 * sizes.context),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(config, dtype=sizes.dtype)
    model.save_pretrained(folder, max_shard_size="2GB")
    return folder


@torch.inference_mode()
def attention_is_right(device: torch.device, sizes: Sizes) -> Iterator[Finding]:
    """Steps that only decode and steps with prompts, over a pool with poison between its slots."""
    sinks = torch.randn(sizes.heads, device=device)
    rules = {
        "": AttentionRule(),
        " in a window": AttentionRule(window=max(2, sizes.context // 3)),
        " with sinks": AttentionRule(sinks=sinks),
    }
    kind = attention_kind(
        capability_of(device), sizes.dtype, sizes.head_size, sizes.head_size, None
    )
    for name, batch in _batches(sizes).items():
        for suffix, rule in rules.items():
            error = _error(device, sizes, batch, rule, kind)
            what = f"attention ({kind.name.lower()}) of {name}{suffix} beside float64"
            yield Finding(what, error, "of its norm", error < LARGEST_ERROR)


def _batches(sizes: Sizes) -> dict[str, PackedBatch]:
    """The first slots of the pool, each with room for twice the context."""
    choice, room = random.Random(3), 2 * sizes.context
    rows = [
        Span(row, 1, choice.randrange(sizes.context), row * room) for row in range(max(sizes.rows))
    ]
    prompt, chunk = sizes.context // 2, sizes.context // 4
    mixed = (
        Span(0, prompt, 0, 0),
        Span(prompt, 1, sizes.context, room),
        Span(prompt + 1, chunk, prompt, 2 * room),
    )
    return {"rows that decode": pack(rows), "prompts and chunks": pack(mixed)}


def _error(
    device: torch.device,
    sizes: Sizes,
    batch: PackedBatch,
    rule: AttentionRule,
    kind: AttentionKind,
) -> float:
    capability = capability_of(device)
    pools = [KVPool({0: sizes.shape}, dtype, device) for dtype in (sizes.dtype, torch.float64)]
    for pool in pools:
        pool.reserve(len(batch.spans) * 2 * sizes.context)
    for ours, exact in zip(pools[0].layers[0], pools[1].layers[0], strict=True):
        ours.fill_(float("nan"))
        for span in batch.spans:
            part = ours[:, span.place : span.place + span.end]
            part.copy_(torch.randn(part.shape, device=device))
        exact.copy_(ours)
    query = torch.randn(batch.rows, sizes.heads, sizes.head_size, device=device)
    query = query.to(sizes.dtype).transpose(0, 1)
    steps = [StepInputs(pool, batch, (), (), None, capability).packed for pool in pools]
    attend = (
        flash_attention if kind is AttentionKind.FLASH else attention_by_request.attend_by_request
    )
    found = attend(query, *pools[0].layers[0], steps[0], rule).double()
    expected = attention_by_request.attend_by_request(
        query.double(), *pools[1].layers[0], steps[1], rule
    )
    return float((found - expected).norm() / expected.norm())


@torch.inference_mode()
def admissions_fit(device: torch.device, sizes: Sizes) -> Finding:
    """Random ones in a pool that is nearly full, each with what was written in it to the end."""
    choice = random.Random(7)
    shapes = dict.fromkeys(range(sizes.layers), sizes.shape)
    pool = KVPool(shapes, sizes.dtype, device)
    pool.reserve(sizes.positions)
    taken, held, wrong = 0, dict[int, int](), 0
    for number in range(1, sizes.admissions + 1):
        capacity = choice.randint(1, max(2, sizes.positions // 20))
        while taken + capacity > FILL * sizes.positions:
            ended = choice.choice(sorted(held))
            wrong += not _has_kept(pool, ended, held[ended])
            pool.release(ended)
            taken -= held.pop(ended)
        pool.admit(number, capacity)
        held[number], taken = capacity, taken + capacity
        slot = pool.slot(number, capacity)
        slot.written = capacity
        for pair in pool.layers.values():
            for tensor in pair:
                tensor[:, slot.start : slot.end] = _mark(number)
    wrong += sum(not _has_kept(pool, *item) for item in held.items())
    grown = pool.positions - sizes.positions
    what = f"{sizes.admissions} random admissions at {FILL:.0%} fill: slots lost or positions added"
    return Finding(what, wrong + grown, "of them", wrong + grown == 0)


def _mark(number: int) -> float:
    return float(number % 200)  # exact in half precision


def _has_kept(pool: KVPool, number: int, capacity: int) -> bool:
    start = pool.slot(number, capacity).start
    parts = [
        tensor[:, start : start + capacity] for pair in pool.layers.values() for tensor in pair
    ]
    return all(bool((part == _mark(number)).all()) for part in parts)
