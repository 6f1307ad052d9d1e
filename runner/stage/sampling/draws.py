"""Draws an id by Gumbel noise: the largest of score + noise(seed, choice, position, id).

The winner is distributed as softmax(scores) is (https://arxiv.org/abs/1411.0030). An
id's noise hangs on nothing but its key, so a score that is off by 1e-7 changes the winner only
where the two best are as close as that; in a draw by cumulative probability it moves the border
of every later id.

The noise is -log(-log(1 - w)) with w = (number + 1/2) / 2**31, hence never outside LEAST_NOISE to
MOST_NOISE: an id whose score is further below the best one than that is wide, 25.3, cannot win.
Its probability is at most 1.1e-11.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from runner.stage.sampling.noise import BITS, Key, marks, numbers

_LARGEST = 1 - 0.5 / 2**BITS  # of w
MOST_NOISE = -math.log(-math.log(_LARGEST))
LEAST_NOISE = -math.log(-math.log1p(-_LARGEST))

# A positive float32's bits, read as an integer, are 2**23 times its binary logarithm + 127, up to
# 0.0861 too low: they have the mantissa m where the logarithm has log2(1 + m).
_SCALE = math.log(2) / 2**23
_OFFSET = math.log(2) * (127 + BITS)
_SHORT = 0.0861 * math.log(2)
_ROUNDING = 2e-4  # of float32 numbers near 110, 4e-6 each time


class Draws:
    """One vocabulary's draws, on one device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._on_host = marks(vocab_size)
        self._on_device = torch.from_numpy(self._on_host).to(device)

    def draw(self, scores: torch.Tensor, ids: torch.Tensor | None, key: Key) -> int:
        """The place of the winner in `scores`: float32, the largest of them 0.

        `ids` ascend and say whose the scores are; None: the whole vocabulary's. Logarithms are
        taken of those only that could win, in float64 and on the host, whatever the device.
        """
        if scores.device.type == "cpu":
            marked = self._on_host if ids is None else self._on_host[ids.numpy()]
            places, rivals, drawn = rivals_on_host(scores.numpy(), marked, key)
        else:
            there = self._on_device if ids is None else self._on_device[ids]
            places, rivals, drawn = rivals_on_device(scores, there, key)
        values = [value(*pair) for pair in zip(rivals, drawn, strict=True)]
        return places[values.index(max(values))]


def value(score: float, number: int) -> float:
    """What the largest of wins."""
    return score - math.log(-math.log1p(-(number + 0.5) / 2**BITS))


# What both return: places in the scores, ascending, mostly one or two; their scores; their numbers.
# With E = -log(1 - w) >= w a value, score - log(E), is at most score - log(w), and that at most its
# estimate, where float32's bits stand for the logarithm. Nobody wins whose estimate is below a
# value that is reached, and _reached of the best estimate is.
_Rivals = tuple[list[int], list[float], list[int]]


def rivals_on_host(scores: NDArray[np.float32], marked: NDArray[np.int32], key: Key) -> _Rivals:
    """In numpy: here up to twice as fast as torch for a vocabulary, four times for a few ids."""
    mixed = numbers(marked, key)
    uniform = mixed.astype(np.float32)
    uniform += np.float32(0.5)
    estimates = uniform.view(np.int32).astype(np.float32)
    estimates *= np.float32(-_SCALE)
    estimates += scores
    best = float(estimates[estimates.argmax()])
    (places,) = (estimates >= np.float32(_reached(best + _OFFSET) - _OFFSET)).nonzero()
    return places.tolist(), scores[places].tolist(), mixed[places].tolist()


def rivals_on_device(scores: torch.Tensor, marked: torch.Tensor, key: Key) -> _Rivals:
    """The host waits for the device twice, not for the best estimate too."""
    mixed = numbers(marked, key)
    uniform = mixed.float() + 0.5
    estimates = torch.add(scores, uniform.view(torch.int32), alpha=-_SCALE)
    places = (estimates >= estimates.max() + _reached(0)).nonzero()[:, 0]
    columns = torch.stack((places.double(), scores[places].double(), mixed[places].double()))
    found, rivals, drawn = columns.tolist()
    return [int(place) for place in found], rivals, [int(number) for number in drawn]


def _reached(estimate: float) -> float:
    """What the value with this estimate is at least, where its score is at most 0.

    log(w) is score - estimate, up to _SHORT more, and E / w grows with w.
    """
    largest = min(_LARGEST, math.exp(min(_SHORT - estimate, 0)))
    return estimate - _SHORT - math.log(-math.log1p(-largest) / largest) - _ROUNDING
