"""Steps of one row a request as CUDA graphs: the host says once what is launched, then only again.

A graph has memory at fixed places, so steps are padded to a few numbers of rows and keys and copied
into these places. No GPU has run this; SPLITSTACK_DECODE_GRAPHS=1 (SWITCH) has it tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from runner.errors import UnsupportedModel
from runner.stage.model.attention_kind import capability_of
from runner.stage.model.kv_pool import KVPool
from runner.stage.model.packed_batch import PackedBatch
from runner.stage.model.packed_step import StepInputs

logger = logging.getLogger(__name__)

SWITCH = "SPLITSTACK_DECODE_GRAPHS"
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LEAST_KEYS = 1024  # and its multiples by two: how long a text may be in a graph

Compute = Callable[[StepInputs], torch.Tensor]
Replay = Callable[[], torch.Tensor]


class Capture(Protocol):
    def __call__(self, inputs: StepInputs, compute: Compute, /) -> Replay:
        """What computes anew from what `inputs` hold then; raises where that cannot be. Called when
        `compute` has run with inputs of the same shapes."""


class CudaCapture:
    """All graphs of a model share their memory: one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: StepInputs, compute: Compute) -> Replay:
        if inputs.packed.by_request:
            raise UnsupportedModel("its attention goes request by request")
        inputs.packed.renew(inputs.packed.batch)  # what was made outside would not be made anew
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = compute(inputs)

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def compute_again(inputs: StepInputs, compute: Compute) -> Replay:
    """In place of a graph where there are none."""
    return lambda: compute(inputs)


class _Bucket:
    """One number of rows and of keys; `replay` from its second step on."""

    def __init__(self, inputs: StepInputs) -> None:
        self.inputs = inputs
        self.replay: Replay | None = None


class DecodeGraphs:
    """What is returned is read before the next step: a graph writes into the same memory again."""

    def __init__(self, compute: Compute, pool: KVPool, capture: Capture) -> None:
        self._compute, self._pool, self._capture = compute, pool, capture
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self._generation = pool.generation
        self.off = False

    def run(
        self, batch: PackedBatch, ids: Sequence[int], hidden: torch.Tensor | None
    ) -> torch.Tensor | None:
        """One row of each request, all sampled; None: to be computed without a graph."""
        if self.off or not 0 < batch.rows <= ROWS[-1] or batch.max_q > 1:
            return None
        if self._generation != self._pool.generation:  # its memory is another
            self._buckets.clear()
            self._generation = self._pool.generation
        rows = next(size for size in ROWS if size >= batch.rows)
        keys = max(LEAST_KEYS, 1 << (batch.max_k - 1).bit_length())
        padded = batch.padded(rows, keys, self._pool.scratch)
        ids = [*ids, *[0] * (rows - batch.rows)] if ids else ()
        output = self._step(padded, ids, hidden)
        return output[: batch.rows]

    def _step(
        self, batch: PackedBatch, ids: Sequence[int], hidden: torch.Tensor | None
    ) -> torch.Tensor:
        key, sampled = (batch.rows, batch.max_k), range(batch.rows)
        bucket = self._buckets.get(key)
        if bucket is None:
            place = None if hidden is None else hidden.new_zeros(batch.rows, hidden.shape[1])
            capability = capability_of(self._pool.device)
            inputs = StepInputs(self._pool, batch, ids, sampled, place, capability)
            inputs.fill(batch, ids, sampled, hidden)
            self._buckets[key] = _Bucket(inputs)
            return self._compute(inputs)
        bucket.inputs.fill(batch, ids, sampled, hidden)
        if bucket.replay is None:
            try:
                bucket.replay = self._capture(bucket.inputs, self._compute)
            except Exception as error:  # whatever a model's code does that no graph can hold
                logger.warning("computed without graphs from now on: %s", error)
                self.off = True
                self._buckets.clear()
                bucket.inputs.packed.renew(batch)
                return self._compute(bucket.inputs)
        return bucket.replay()
