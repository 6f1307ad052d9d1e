"""A step: what moves once through the pipeline. Token ids only, no torch.

The master makes a Step, every stage runs its layers over it, the last stage answers with one
SampledToken per sampling segment, and one per row that is scored. How steps travel is in
`transport`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runner.grammar import GrammarFault
from runner.sampling_parameters import SamplingParameters

MOST_KEPT = 512  # slots of requests that have ended, kept for those that begin alike


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens of one request in one step: positions start .. start + length - 1.

    `total` is the number of token ids known for the request when this was scheduled (the whole
    prompt while it is prefilled chunk by chunk; start + 1 when decoding): the length class that
    models with length-dependent rotary factors need. `sample`: the last row is sampled.

    The first `scored` rows are asked for the log probability of the id that follows each of them
    in the request: in the segment itself, and behind its last row `following`.
    """

    request: int
    start: int
    length: int
    total: int
    sample: bool
    scored: int = 0
    following: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """What the stages keep of a request, sent with its first segment of an epoch.

    `capacity` is the number of positions to reserve in the KV cache (prompt + new tokens, the
    worst case). The first `prompt_length` ids are the prompt; after a replay the first segments
    hold prompt and emitted ids. An admission of a request already held starts it over (its old KV
    is dropped).

    The first `reused` positions are not sent: they are what request `donor` has there, which the
    stages hold since an earlier step. Without any its segments begin at position 0.

    `grammar` is Grammar.text, which its generated ids follow from the first one on; "" for none.
    """

    request: int
    capacity: int
    prompt_length: int
    choice: int
    seed: int
    sampling: SamplingParameters
    donor: int = 0
    reused: int = 0
    grammar: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One micro-batch's way through the pipeline.

    `token_ids` holds the ids of all segments, one after the other: sum of their lengths.
    `releases` are requests whose KV is freed before the step runs; they are released before
    `admissions` take effect, but that a donor of these gives its slot to the one that names it. A
    step may have no segments (it only releases).
    """

    number: int
    segments: tuple[Segment, ...]
    token_ids: Sequence[int]
    admissions: tuple[Admission, ...] = ()
    releases: tuple[int, ...] = ()

    @property
    def sampled_rows(self) -> int:
        return sum(segment.sample for segment in self.segments)

    @property
    def scored_rows(self) -> int:
        return sum(segment.scored for segment in self.segments)

    def following(self) -> Iterator[tuple[int, int, int]]:
        """What follows each scored row, in order: its request, position and token id."""
        first = 0
        for segment in self.segments:
            if segment.scored:
                ids = [*self.token_ids[first + 1 : first + segment.length], segment.following]
                for place, token_id in enumerate(ids[: segment.scored], segment.start + 1):
                    yield segment.request, place, token_id
            first += segment.length


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One sampled token. `position` is its own absolute position (= ids known before it).

    A prompt's own id is one too where it was scored: as if it had been sampled there.

    `logprob` and `alternatives` (token id, log probability; best first) are set only where the
    request's `logprobs` asks for them.
    """

    request: int
    position: int
    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the last stage cannot hold to its grammar."""

    request: int
    fault: GrammarFault


@dataclass(frozen=True, slots=True)
class StageTime:
    """What one stage spent on one step, in nanoseconds."""

    rank: int
    compute_ns: int
    wait_ns: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step that has come back to the master. `scored` are in the order of the step's rows.

    A sampling segment of a request with a grammar may come back without a token: `refused`, or
    because what it may be is not known yet; then the segment is to be computed once more.

    `aborted`: a stage had no memory for it, or holds nothing any more of a request in it. Its
    releases took effect and nothing else: each of its requests is to be admitted again.
    """

    number: int
    tokens: tuple[SampledToken, ...]
    times: tuple[StageTime, ...]
    scored: tuple[SampledToken, ...] = ()
    aborted: bool = False
    refused: tuple[Refusal, ...] = ()
