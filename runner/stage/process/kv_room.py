"""How many positions a loaded stage's KV cache has, by the rule of contract/memory.py."""

from __future__ import annotations

import dataclasses

import torch

from contract.memory import MemoryShare
from contract.specs import GroupSpec, StageSpec
from runner.errors import RunnerError
from runner.sampling_parameters import SamplingParameters
from runner.stage.model.pruned import constructing
from runner.stage.model.stage_model import StageModel
from runner.stage.process.device import Device
from runner.steps import Admission, Segment, Step

_SAMPLING = SamplingParameters()


def memory_of(
    stage: StageSpec, spec: GroupSpec, share: MemoryShare, device: Device, sharing: int
) -> int:
    """Bytes that the rank may use for its share, in which it fits; raises RunnerError. `sharing`
    ranks take their memory from the same node."""
    on_cpu = torch.device(stage.device).type == "cpu"
    declared = stage.memory_bytes if on_cpu else spec.ranks[stage.rank].device_memory
    memory = device.memory_bytes(declared, share.needed_bytes(0), sharing)
    _refuse_what_does_not_fit(share, memory)
    return memory


def kv_tokens(
    stage: StageSpec, spec: GroupSpec, model: StageModel, device: Device, sharing: int
) -> int:
    """Positions in all, over every request.

    Where the device counts its memory, the largest step is computed once. Raises RunnerError where
    not one position fits. What the model holds for requests is dropped.
    """
    model.reserve_kv(0)
    layers = spec.ranks[stage.rank].layers
    share = MemoryShare(stage.rank, layers, model.weight_bytes, model.kv_bytes_per_token)
    memory = memory_of(stage, spec, share, device, sharing)
    longest = min(longest_request(spec, model), share.kv_tokens(memory))
    step = largest_step(spec.prefill_token_budget, spec.max_concurrent_requests, longest)
    peak = device.peak_bytes(lambda: try_step(step, model))
    if peak is not None:
        own = sum(item.capacity for item in step.admissions) * model.kv_bytes_per_token
        # Graphs keep what their steps take, beside a step that has none.
        held_back = max(0, peak - own) * (2 if model.has_graphs else 1)
        share = dataclasses.replace(share, step_bytes=held_back)
        _refuse_what_does_not_fit(share, memory)
    return share.kv_tokens(memory)


def longest_request(spec: GroupSpec, model: StageModel) -> int:
    """Positions of one that is as long as the spec allows."""
    return min(model.max_positions, spec.max_model_len or model.max_positions)


def largest_step(budget: int, requests: int, longest: int) -> Step:
    """A prompt's chunk of `budget` tokens that ends at position `longest`, and one token of every
    other request, all of them sampled: no step that the master makes takes more.

    The first request's slot is as long as the longest, the others' have one position each.
    """
    length = min(budget, longest)
    segments = (
        Segment(0, longest - length, length, longest, True),
        *(Segment(request, 0, 1, 1, True) for request in range(1, requests)),
    )
    admissions = tuple(
        Admission(segment.request, segment.total, segment.total, 0, 0, _SAMPLING)
        for segment in segments
    )
    tokens = [0] * sum(segment.length for segment in segments)
    return Step(0, segments, tokens, admissions)


def try_step(step: Step, model: StageModel) -> None:
    """Compute a step of no epoch, its slots included, and forget it."""
    model.reserve_kv(sum(item.capacity for item in step.admissions))
    for admission in step.admissions:
        model.admit(admission)
    hidden = None
    if not model.is_first:
        hidden = torch.zeros(len(step.token_ids), model.hidden_size, dtype=model.torch_dtype)
    with constructing:
        model.forward(step, hidden)
    model.reserve_kv(0)


def _refuse_what_does_not_fit(share: MemoryShare, memory_bytes: int) -> None:
    if not share.fits(memory_bytes):
        raise RunnerError(share.refusal(memory_bytes))
