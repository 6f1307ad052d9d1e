"""The engine's boundary: token ids in, token ids out. Text lives beside the API."""

from __future__ import annotations

from dataclasses import dataclass

from runner.sampling_parameters import SamplingParameters

FINISHED_BY_STOP = "stop"
FINISHED_BY_LENGTH = "length"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to generate. `deadline_s` counts from submission; None takes the spec's.

    Generation ends at an id of `sampling.stop_token_ids` (the API puts the model's end-of-sequence
    ids there) or after `max_new_tokens`. The choices of one API request are requests of their own
    that differ in `choice` only, so that each has random numbers of its own.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParameters
    choice: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated id. The last one of a request carries its `finish_reason`.

    A stop id is delivered too (it counts as a completion token); text leaves it out.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None
