"""The log probabilities of ids that are given: what a model says of its own prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import torch

from runner.steps import SampledToken


def score(
    following: Iterator[tuple[int, int, int]],
    wanted: Mapping[int, int],
    parts: Iterable[torch.Tensor],
) -> list[SampledToken]:
    """`following` as Step.following tells it, for the rows of `parts` in order: logits [rows,
    vocabulary]. `wanted` is each request's number of alternatives.

    Of the distribution before temperature, filters and penalties, as for a sampled token.
    """
    found: list[SampledToken] = []
    for logits in parts:
        targets = list(islice(following, logits.shape[0]))
        ids = torch.tensor([target[2] for target in targets], device=logits.device)
        raw = torch.log_softmax(logits, dim=-1)
        own = raw.gather(-1, ids.unsqueeze(-1)).squeeze(-1).tolist()
        most = min(max(wanted[target[0]] for target in targets), raw.shape[-1])
        top = raw.topk(max(most, 0))
        best = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        for (request, position, token_id), logprob, pair in zip(targets, own, best, strict=True):
            alternatives = tuple(zip(*pair, strict=True))[: max(wanted[request], 0)]
            found.append(SampledToken(request, position, token_id, logprob, alternatives))
    return found
