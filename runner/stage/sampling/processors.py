"""From a request's sampling parameters to transformers' logits processors, in its order."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from runner.sampling_parameters import SamplingParameters

# Below this a temperature is 0 in float32; with the maximum at 0 this one is as cold.
COLDEST = 1e-30
# What is left out before a sort pays only where it is most of a row.
_FEW = 3


class OccurrencePenalties(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's presence and frequency penalties, which transformers has not.

    score[id] -= count[id] * frequency + (count[id] > 0) * presence, counting generated ids only
    (https://platform.openai.com/docs/api-reference/chat/create).
    """

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence, self._frequency = presence, frequency
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [1, known], scores [1, vocabulary]."""
        counts = torch.bincount(input_ids[0, self._prompt_length :], minlength=scores.shape[-1])
        counts = counts[: scores.shape[-1]]
        return scores - self._frequency * counts - self._presence * (counts > 0)


def penalties(
    sampling: SamplingParameters, prompt_length: int, vocab_size: int
) -> LogitsProcessorList:
    """What changes the scores of greedy and sampled rows alike; empty for most requests.

    Biases on ids outside the vocabulary have nothing to act on and are left out.
    """
    chosen = LogitsProcessorList()
    bias = {
        (token_id,): float(value)
        for token_id, value in sampling.logit_bias.items()
        if token_id < vocab_size
    }
    if bias:
        chosen.append(SequenceBiasLogitsProcessor(sequence_bias=bias))
    if sampling.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if counts_occurrences(sampling):
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        chosen.append(OccurrencePenalties(presence, frequency, prompt_length))
    return chosen


def needs_known_ids(sampling: SamplingParameters) -> bool:
    return sampling.repetition_penalty != 1 or counts_occurrences(sampling)


def counts_occurrences(sampling: SamplingParameters) -> bool:
    return sampling.presence_penalty != 0 or sampling.frequency_penalty != 0


def temperature(sampling: SamplingParameters) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if sampling.temperature not in (0, 1):
        chosen.append(TemperatureLogitsWarper(max(float(sampling.temperature), COLDEST)))
    return chosen


def filters(sampling: SamplingParameters) -> LogitsProcessorList:
    """What is applied to the candidates that `likeliest` left."""
    chosen = LogitsProcessorList()
    if sampling.top_p < 1 and sampling.top_k > 0:
        chosen.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p > 0:
        chosen.append(MinPLogitsWarper(float(sampling.min_p)))
    return chosen


def likeliest(scores: torch.Tensor, sampling: SamplingParameters) -> torch.Tensor | None:
    """The ids that top_k leaves (ties with the last stay), or top_p where top_k is off; None: all.

    transformers' definitions, but what comes after sees a short row. scores [vocabulary].
    """
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[-1]
        return places(scores >= least)
    if sampling.top_p < 1 and sampling.top_k == 0:
        return _nucleus(torch.softmax(scores, dim=-1), sampling.top_p)
    return None


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The fewest likeliest ids whose probabilities reach top_p; ties with the last stay."""
    if probabilities.device.type == "cpu":
        return torch.from_numpy(_nucleus_on_host(probabilities.numpy(), top_p))
    ascending = probabilities.sort().values
    below = ascending.cumsum(dim=-1, dtype=torch.float64)
    first = int(torch.searchsorted(below, 1 - top_p, right=True))
    return places(probabilities >= ascending[min(first, ascending.shape[0] - 1)])


def _nucleus_on_host(probabilities: NDArray[np.float32], top_p: float) -> NDArray[np.intp]:
    """numpy sorts nearly 20 times as fast as torch, and of a peaked row those only that can be in
    it: all below (1 - top_p) / vocabulary have less than 1 - top_p together."""
    size = len(probabilities)
    likely = probabilities >= np.float32((1 - top_p) / size)
    few = np.count_nonzero(likely) <= size // _FEW
    found = np.flatnonzero(likely) if few else None
    considered = probabilities if found is None else probabilities[found]
    ascending = np.sort(considered)
    below = np.cumsum(ascending, dtype=np.float64)
    if found is not None:
        below += np.sum(probabilities, dtype=np.float64) - below[-1]
    first = int(np.searchsorted(below, 1 - top_p, side="right"))
    nucleus = np.flatnonzero(considered >= ascending[min(first, len(ascending) - 1)])
    return nucleus if found is None else found[nucleus]


def places(kept: torch.Tensor) -> torch.Tensor:
    """Where it is true, ascending; numpy finds it six times as fast on the CPU."""
    if kept.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(kept.numpy()))
    return kept.nonzero()[:, 0]
