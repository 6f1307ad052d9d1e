"""Random numbers that are functions of (seed, choice, position, token id), for any set of ids.

Integer arithmetic modulo 2**32 alone, so that a CPU and a GPU get the same bits, and nothing is
drawn in turn, so that neither the company in a step nor the filters change an id's number.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TypeVar

import numpy as np
import torch

# Both wrap modulo 2**32, shift signed numbers arithmetically and take Python's integers.
Integers = TypeVar("Integers", np.ndarray, torch.Tensor)

BITS = 31


class Key:
    """What stands for one draw: four words of BLAKE2b, two of them odd, as signed 32-bit."""

    __slots__ = ("add_1", "add_2", "factor_1", "factor_2")

    def __init__(self, seed: int, choice: int, position: int) -> None:
        """Each argument from 0 to 2**64 - 1."""
        counter = struct.pack("<QQQ", seed, choice, position)
        words = struct.unpack("<4i", hashlib.blake2b(counter, digest_size=16).digest())
        self.factor_1, self.add_1 = words[0] | 1, words[1]
        self.factor_2, self.add_2 = words[2] | 1, words[3]


def marks(vocab_size: int) -> np.ndarray:
    """A number for each id, int32 [vocab_size], none like its neighbour's: what `numbers` takes.

    A bijection (https://nullprogram.com/blog/2018/07/31/), so that no two ids share one.
    """
    mixed = np.arange(vocab_size, dtype=np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    return mixed.view(np.int32)


def numbers(marked: Integers, key: Key) -> Integers:
    """Independent, uniform from 0 to 2**BITS - 1, int32; `marked` are some of the marks.

    Two affine maps with odd factors, which are bijections, each followed by the upper half folded
    into the lower one. The last fold makes of x and of one other number the same result and none
    negative, so that over all keys every result is equally likely, exactly.
    """
    mixed: Integers = marked * key.factor_1
    mixed += key.add_1
    mixed ^= mixed >> 15
    mixed *= key.factor_2
    mixed += key.add_2
    mixed ^= mixed >> 16
    return mixed
