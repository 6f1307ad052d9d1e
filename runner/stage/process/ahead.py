"""Weights that are loaded before they are wanted, beside those that a stage computes with."""

from __future__ import annotations

import gc
import logging

import torch

from contract.memory import STEP_BYTES, room_beside
from contract.specs import GroupSpec, StageSpec
from runner.stage.model.stage_model import StageModel, choose_dtype
from runner.stage.process.device import device_of
from runner.stage.process.error_kind import ErrorKind, error_kind
from runner.stage.process.load import PreparedPart, load
from runner.transport.control import StageInfo

logger = logging.getLogger(__name__)


def load_ahead(
    stage: StageSpec, part: PreparedPart, spec: GroupSpec | None, held: StageInfo | None
) -> StageModel | None:
    """The part's model, None where memory does not hold it beside `held`, whose requests are
    limited by `spec`. From any thread; raises RunnerError where it cannot be loaded at all."""
    if spec is not None and held is not None:
        wanted, room = _wanted_bytes(stage, part), room_for(stage, spec, held)
        if wanted > room:
            logger.info(
                "rank %d: what it serves leaves %d bytes, and %d are wanted to load %s beside it: "
                "it is loaded when the other is gone",
                stage.rank,
                room,
                wanted,
                part.spec.model_name,
            )
            return None
    try:
        return load(stage, part)
    except Exception as error:
        if error_kind(error) is not ErrorKind.MEMORY:
            raise
        logger.warning("rank %d: no memory to load it beside what it serves", stage.rank)
    give_back(stage)
    return None


def room_for(stage: StageSpec, spec: GroupSpec, held: StageInfo) -> int:
    """Bytes, by the rule of contract/memory.py, and no more than there are now."""
    room = room_beside(
        held.kv_tokens,
        held.kv_bytes_per_token,
        requests=spec.max_concurrent_requests,
        longest=min(held.max_positions, spec.max_model_len or held.max_positions),
    )
    return min(room, device_of(torch.device(stage.device)).free_bytes())


def give_back(stage: StageSpec) -> None:
    """The memory of a model that nobody has any more; its modules refer to one another."""
    gc.collect()
    device_of(torch.device(stage.device)).give_back()


def _wanted_bytes(stage: StageSpec, part: PreparedPart) -> int:
    """Its weights, and what loading takes beside them: one weight twice, and buffers."""
    layout, dtype = part.checkpoint.layout, _dtype(stage, part)
    largest = layout.largest_weight_bytes(part.layers, dtype)
    return layout.weight_bytes(part.layers, dtype) + largest + STEP_BYTES


def _dtype(stage: StageSpec, part: PreparedPart) -> torch.dtype:
    return choose_dtype(part.spec.dtype, torch.device(stage.device), part.checkpoint.config)
