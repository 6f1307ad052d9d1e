"""Requests: what the engine is asked and answers, and the ledger of all that are open.

Token ids in, token ids out; text lives beside the API. The ledger holds what the master must know
to finish every open request, whatever is lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from runner.errors import RunnerError
from runner.grammar import Grammar
from runner.sampling_parameters import SamplingParameters
from runner.steps import Admission, SampledToken

FINISHED_BY_STOP = "stop"
FINISHED_BY_LENGTH = "length"
MOST_SHORTAGES = 3  # so many are a request's end
ID_BYTES = 4  # of one that is packed
LOSSES_TOGETHER = 2  # from then on a request is tried alone; one more loss is its end


@dataclass(frozen=True, slots=True)
class Carried:
    """What a request brings that was admitted before, by a process that is gone: the `ids` that
    were delivered of it. It is tried `alone` where it may be what ends such processes."""

    ids: tuple[int, ...] = ()
    alone: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to generate. `deadline_s` counts from submission; None takes the spec's.

    Generation ends at an id of `sampling.stop_token_ids` (the API puts the model's end-of-sequence
    ids there) or after `max_new_tokens`. With `echo` a PromptEvent comes first; only then may
    `max_new_tokens` be 0, and it is the end. The choices of one API request are requests of their
    own that differ in `choice` only, so that each has random numbers of its own: they have one
    seed, which is never None here. `request_id` is what the log calls it. One that is `carried`
    goes on after ids which have not finished it; its prompt was told with the first of them.
    Requests of one `domain` wait for one another. What is generated follows the `grammar`, and a
    stop id comes where that may end.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParameters
    choice: int = 0
    deadline_s: float | None = None
    request_id: str = ""
    carried: Carried | None = None
    echo: bool = False
    domain: str = ""
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated id. The last one of a request carries its `finish_reason`.

    A stop id is delivered too (it counts as a completion token); text leaves it out.
    """

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """The prompt is computed. `ids` are its ids with what `sampling.logprobs` asks for: the log
    probability of each after those before it, which the first one has not."""

    ids: tuple[TokenEvent, ...] = ()
    finish_reason: str | None = None


Event: TypeAlias = TokenEvent | PromptEvent


@dataclass(slots=True, eq=False)
class OpenRequest:
    """One request from submission to its last token.

    `emitted` are the ids delivered so far; prompt + emitted are its known ids. `held`: the stages
    of this epoch keep a place for it. `sent` counts the known ids they have been sent since its
    last admission, `prefilled` is set once those were all, and `awaiting` while the token after
    the last known id is being computed.

    `losses` counts the epochs that were lost while it was being computed, since it last got beyond
    what was computed then: the positions below `doubted`. One that is carried may bring some.

    `shortages` counts the steps since its last token that found no memory though they were as small
    as can be, with nothing beside them. `echo` until its prompt was told; `scores` are those of the
    prompt's ids that have come back. `had_place`: it was admitted once, and is so before others
    when it has to wait again. `places` are the KV positions that are counted for it while it runs,
    `reused` how many ids of its prompt were not computed for it before its first token.
    """

    number: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParameters
    choice: int
    seed: int
    deliver: Callable[[Event | RunnerError], None]
    emitted: list[int] = field(default_factory=list)
    held: bool = False
    sent: int = 0
    prefilled: bool = False
    awaiting: bool = False
    long_class: bool = False
    chunk_tokens: int = 0
    request_id: str = ""
    echo: bool = False
    scores: list[TokenEvent] = field(default_factory=list)
    shortages: int = 0
    losses: int = 0
    doubted: int = 0
    domain: str = ""
    had_place: bool = False
    packed: bytes = b""
    places: int = 0
    reused: int = 0
    grammar: Grammar | None = None

    @property
    def known(self) -> int:
        return len(self.prompt_ids) + len(self.emitted)

    @property
    def capacity(self) -> int:
        """KV positions in the worst case: the last new token is never read back."""
        return len(self.prompt_ids) + self.max_new_tokens

    def ids(self, start: int, length: int) -> list[int]:
        """Known ids at positions start .. start + length - 1."""
        prompt = len(self.prompt_ids)
        if start >= prompt:
            return self.emitted[start - prompt : start - prompt + length]
        ids = list(self.prompt_ids[start : start + length])
        return ids + self.emitted[: length - len(ids)]

    def known_packed(self) -> bytes:
        return self.packed + packed(self.emitted)

    def admission(self, donor: int = 0, reused: int = 0) -> Admission:
        return Admission(
            request=self.number,
            capacity=self.capacity,
            prompt_length=len(self.prompt_ids),
            choice=self.choice,
            seed=self.seed,
            sampling=self.sampling,
            donor=donor,
            reused=reused,
            grammar="" if self.grammar is None else self.grammar.text,
        )

    def ask_again(self) -> None:
        """Its token was not to be had yet: the last known id is to be computed once more."""
        self.awaiting = False
        self.sent = self.known - 1

    def start_over(self) -> None:
        """The stages hold nothing of it any more: prompt and emitted ids are to be sent again."""
        self.held = False
        self.prefill_again()

    def prefill_again(self) -> None:
        """Admit it again: what the stages keep of it is dropped then."""
        self.sent = 0
        self.prefilled = self.awaiting = False

    @property
    def tried_alone(self) -> bool:
        """Nothing may be computed beside it, until it has got beyond what is in doubt."""
        return self.losses >= LOSSES_TOGETHER

    def lost_at(self, position: int) -> None:
        """The epoch was lost while its positions below `position` were being computed."""
        self.losses += 1
        self.doubted = max(self.doubted, position)

    def came_back(self, position: int) -> None:
        """Its positions below `position` are computed."""
        if position >= self.doubted:
            self.losses = self.doubted = 0

    def scored_rows(self, start: int, length: int) -> int:
        """How many of its rows from `start` on are to be scored: those whose next id is the
        prompt's own, where one of them is not known yet."""
        known = start + length <= len(self.scores)
        if not self.echo or self.sampling.logprobs < 0 or known:
            return 0
        return max(0, min(length, len(self.prompt_ids) - 1 - start))

    def accept_score(self, token: SampledToken) -> None:
        """The next id of its prompt; another one is late, or was seen before."""
        if self.echo and token.position == 1 + len(self.scores):
            self.scores.append(TokenEvent(token.token_id, token.logprob, token.alternatives))

    def prompt_came_back(self, position: int) -> PromptEvent | None:
        """Its positions below `position` are computed: what is to be told of its prompt, once."""
        if not self.echo or position < len(self.prompt_ids):
            return None
        self.echo = False
        scores, self.scores = self.scores, []
        reason = None if self.max_new_tokens else FINISHED_BY_LENGTH
        if self.sampling.logprobs < 0:
            return PromptEvent(finish_reason=reason)
        assert len(scores) == len(self.prompt_ids) - 1
        return PromptEvent((TokenEvent(self.prompt_ids[0]), *scores), reason)

    def accept(self, token: SampledToken) -> TokenEvent | None:
        """The next token of this request, or None for one that is not: late, or seen before."""
        if not self.awaiting or token.position != self.known:
            return None
        self.awaiting = False
        self.shortages = 0
        self.emitted.append(token.token_id)
        reason = finish_reason(self, token.token_id, len(self.emitted))
        return TokenEvent(token.token_id, token.logprob, token.alternatives, reason)


def packed(ids: Iterable[int]) -> bytes:
    """ID_BYTES for each, to be compared by the thousand."""
    return array("I", ids).tobytes()


def finish_reason(
    request: GenerationRequest | OpenRequest, token_id: int, count: int
) -> str | None:
    """Why the request ends with this id, its `count`th new one; None where it goes on."""
    if token_id in request.sampling.stop_token_ids:
        return FINISHED_BY_STOP
    return FINISHED_BY_LENGTH if count >= request.max_new_tokens else None


class RequestLedger:
    """Every open request by number, in order of arrival."""

    def __init__(self) -> None:
        self.open: dict[int, OpenRequest] = {}
        self._next = 1

    def add(
        self, request: GenerationRequest, deliver: Callable[[Event | RunnerError], None]
    ) -> OpenRequest:
        """Enter a request. What is carried goes on after its ids, as what is replayed does."""
        seed, carried = request.sampling.seed, request.carried or Carried()
        assert seed is not None
        entry = OpenRequest(
            number=self._next,
            prompt_ids=request.prompt_ids,
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            choice=request.choice,
            seed=seed,
            deliver=deliver,
            emitted=list(carried.ids),
            request_id=request.request_id,
            echo=request.echo and not carried.ids,
            domain=request.domain,
            grammar=request.grammar,
            packed=packed(request.prompt_ids),
        )
        if carried.alone:
            entry.losses, entry.doubted = LOSSES_TOGETHER, entry.known
        self._next += 1
        self.open[entry.number] = entry
        return entry

    def remove(self, number: int) -> OpenRequest | None:
        return self.open.pop(number, None)

    def in_turn(self) -> list[OpenRequest]:
        """All, to be entered into a new epoch: those in doubt first, then those that had a place,
        each by arrival."""
        return sorted(
            self.open.values(), key=lambda request: (not request.tried_alone, not request.had_place)
        )

    def places_of(self, domain: str) -> tuple[int, int]:
        """How many are open of `domain`, and how many domains there are, it among them."""
        domains = [request.domain for request in self.open.values()]
        return domains.count(domain), len({domain, *domains})

    def blame(self, computed: Mapping[int, int]) -> list[OpenRequest]:
        """An epoch was lost while requests were being computed, by number up to a position.

        Removes and returns those that were alone then. Whose client has left is passed over.
        """
        ended = []
        for number, position in computed.items():
            request = self.open.get(number)
            if request is None:
                continue
            if request.tried_alone:
                ended.append(self.open.pop(number))
            request.lost_at(position)
        return ended
