"""Chooses the next token of every request of a step; lives on the last stage."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LogitsProcessorList

from runner.stage.sampling.draws import Draws
from runner.stage.sampling.grammars import Followed, Grammars, Ungrammatical, wait
from runner.stage.sampling.noise import Key
from runner.stage.sampling.own_scores import score
from runner.stage.sampling.processors import (
    filters,
    likeliest,
    needs_known_ids,
    penalties,
    places,
    temperature,
)
from runner.steps import Admission, Refusal, SampledToken, Step

logger = logging.getLogger(__name__)

# What stands for a score that is no number, and for infinities: finite after any penalty.
_HUGE = 1e30


@dataclass(slots=True)
class _Request:
    admission: Admission
    penalties: LogitsProcessorList
    temperature: LogitsProcessorList
    filters: LogitsProcessorList
    known_ids: torch.Tensor | None  # [capacity], only where a penalty reads them
    ids: list[int]  # the known ones, also where nothing reads them: others may begin alike
    followed: Followed | None  # the grammar's place


class Sampler:
    """Samples row by row, so that a request's tokens do not depend on its company.

    The noise in a draw comes from (seed, choice, absolute position, id) alone: a replay, or another
    batch, draws the same token, also where the scores' last bits are others. Penalties and biases
    act on greedy requests too. Scores that are no numbers count as the worst, so that a broken row
    costs its request's text only. What a request's grammar does not allow is no candidate, and has
    no log probability.
    """

    def __init__(
        self, vocab_size: int, device: torch.device | str, tokenizer: Path | None = None
    ) -> None:
        """`tokenizer` is the model's tokenizer.json, for requests with a grammar."""
        self._vocab_size, self._device = vocab_size, torch.device(device)
        self._draws = Draws(vocab_size, self._device)
        self._grammars = Grammars(tokenizer, vocab_size) if tokenizer is not None else None
        self._requests: dict[int, _Request] = {}
        self._refused: list[Refusal] = []
        self._warned = False

    def reset(self) -> None:
        """A new epoch: every request is admitted again, by another number after a new master."""
        self._requests.clear()
        self._refused.clear()

    def admit(self, admission: Admission) -> None:
        """Starts the request over when it is held already; after the ids of its donor, which is
        held as long as its keys and values are."""
        sampling, reused = admission.sampling, admission.reused
        ids = self._requests[admission.donor].ids[:reused] if reused else []
        assert len(ids) == reused
        known_ids = None
        if needs_known_ids(sampling):
            known_ids = torch.zeros(admission.capacity, dtype=torch.int64, device=self._device)
            known_ids[:reused] = torch.tensor(ids, dtype=torch.int64)
        self._requests[admission.request] = _Request(
            admission,
            penalties(sampling, admission.prompt_length, self._vocab_size),
            temperature(sampling),
            filters(sampling),
            known_ids,
            ids,
            self._begin_grammar(admission),
        )

    def _begin_grammar(self, admission: Admission) -> Followed | None:
        if not admission.grammar:
            return None
        assert self._grammars is not None, "no tokenizer to follow a grammar with"
        return self._grammars.begin(admission)

    def release(self, request: int) -> None:
        """Unknown ids are ignored."""
        self._requests.pop(request, None)

    def extend(self, step: Step) -> None:
        """The step's token ids are known ids of their requests from now on. Before the layers run:
        what may come after them by a grammar is found out meanwhile."""
        offset = 0
        for segment in step.segments:
            held, end = self._requests[segment.request], segment.start + segment.length
            ids = step.token_ids[offset : offset + segment.length]
            held.ids[segment.start : end] = ids
            if held.known_ids is not None:
                held.known_ids[segment.start : end] = torch.tensor(ids)
            if held.followed is not None and segment.sample:
                held.followed.ask(held.ids, end)
            offset += segment.length

    def sample(self, step: Step, logits: torch.Tensor) -> list[SampledToken]:
        """One token per sampling segment, in order, but for those whose grammar is not that far;
        logits [step.sampled_rows, vocabulary]. Who cannot go on is told by `take_refused`."""
        best, broken = _best(logits)
        if any(broken):
            logits = _finite(logits)
            best = logits.argmax(dim=-1).tolist()
            self._warn(step, broken)
        sampling = [segment for segment in step.segments if segment.sample]
        followed = [self._requests[segment.request].followed for segment in sampling]
        wait([it for it in followed if it is not None], alone=None not in followed)
        tokens = (
            self._token(segment.request, segment.start + segment.length, logits[row], best[row])
            for row, segment in enumerate(sampling)
        )
        return [token for token in tokens if token is not None]

    def take_refused(self) -> list[Refusal]:
        """Those since it was asked last."""
        refused, self._refused = self._refused, []
        return refused

    def score(self, step: Step, parts: Iterable[torch.Tensor]) -> list[SampledToken]:
        """One token per scored row, in order; `parts` of their logits [rows, vocabulary]."""
        wanted = {
            segment.request: self._requests[segment.request].admission.sampling.logprobs
            for segment in step.segments
            if segment.scored
        }
        return score(step.following(), wanted, (_without_nonsense(part) for part in parts))

    def _token(
        self, request: int, position: int, row: torch.Tensor, best: int
    ) -> SampledToken | None:
        held, allowed = self._requests[request], None
        if held.followed is not None:
            try:
                allowed = held.followed.answer()
            except Ungrammatical as error:
                self._refused.append(Refusal(request, error.fault))
            if allowed is None:
                return None
            allowed = allowed.to(row.device)
        wanted = held.admission.sampling.logprobs
        token_id = best
        if allowed is not None or held.penalties or not held.admission.sampling.greedy:
            token_id = _choose(held, self._draws, position, row, allowed)
        if wanted < 0:
            return SampledToken(request, position, token_id)
        if allowed is not None:
            row = torch.full_like(row, -torch.inf).index_copy_(0, allowed, row[allowed])
        raw = torch.log_softmax(row, dim=-1)
        top = raw.topk(min(wanted, raw.shape[0] if allowed is None else len(allowed)))
        alternatives = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return SampledToken(request, position, token_id, float(raw[token_id]), alternatives)

    def _warn(self, step: Step, broken: list[bool]) -> None:
        if not self._warned:
            rows = [segment.request for segment in step.segments if segment.sample]
            names = [request for request, bad in zip(rows, broken, strict=True) if bad]
            logger.error("the model's scores are not finite, first for requests %s", names)
        self._warned = True


def _best(logits: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Each row's best id, and whether the row is broken.

    argmax prefers NaN and +inf, so that looking at the best score alone finds both. On the CPU
    it is numpy's, ten times as fast as torch's.
    """
    if logits.device.type == "cpu":
        best = torch.from_numpy(logits.numpy().argmax(axis=-1))
    else:
        best = logits.argmax(dim=-1)
    scores = logits.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    return best.tolist(), (~scores.isfinite()).tolist()


def _without_nonsense(logits: torch.Tensor) -> torch.Tensor:
    """As they are, where each row's best one is a number."""
    return logits if bool(logits.amax(dim=-1).isfinite().all()) else _finite(logits)


def _finite(scores: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(scores, nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)


def _choose(
    held: _Request, draws: Draws, position: int, row: torch.Tensor, allowed: torch.Tensor | None
) -> int:
    """The id that penalties, filters and the draw lead to; row [vocabulary]. `allowed` are the ids
    that may be chosen, ascending; None: all."""
    admission = held.admission
    scores = row.unsqueeze(0)
    if held.penalties:
        ids = row.new_zeros(1, 0, dtype=torch.int64)
        if held.known_ids is not None:
            ids = held.known_ids[:position].unsqueeze(0)
        scores = _finite(_apply(held.penalties, ids, scores))
    if allowed is not None:
        scores = scores.index_select(1, allowed)
    if admission.sampling.greedy:
        return _id(int(scores.argmax()), allowed)
    scores = _apply(held.temperature, None, scores - scores.max())
    candidates = likeliest(scores[0], admission.sampling)
    if candidates is not None:
        scores = scores.index_select(1, candidates)
    scores = _apply(held.filters, None, scores)
    if candidates is None and held.filters:
        candidates = places(scores[0] > -torch.inf)
        scores = scores.index_select(1, candidates)
    if allowed is not None:
        candidates = allowed if candidates is None else allowed[candidates]
    key = Key(admission.seed, admission.choice, position)
    return _id(draws.draw(scores[0], candidates, key), candidates)


def _id(place: int, ids: torch.Tensor | None) -> int:
    return place if ids is None else int(ids[place])


def _apply(
    processors: LogitsProcessorList, ids: torch.Tensor | None, scores: torch.Tensor
) -> torch.Tensor:
    """What calling the list does, without its look at each signature: 12 us a processor and row."""
    for processor in processors:
        scores = processor(ids, scores)
    return scores
