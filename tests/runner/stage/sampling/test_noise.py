"""The random numbers: the same on every device, uniform, and independent in each argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runner.stage.sampling.noise import BITS, Key, marks, numbers

VOCABULARY = 49_152
IDS = 64
DRAWS = 20_000
RECORDED = [1359290704, 302384009, 1674872373, 992297612]


def uniforms(mixed: np.ndarray) -> np.ndarray:
    return (mixed + 0.5) / 2.0**BITS


def over_keys(keys: list[Key]) -> np.ndarray:
    """[keys, ids], in (0, 1)."""
    marked = marks(IDS)
    return uniforms(np.stack([numbers(marked, key) for key in keys]))


def assert_uncorrelated(one: np.ndarray, other: np.ndarray) -> None:
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / one.size**0.5


def distance(sample: np.ndarray) -> float:
    """Kolmogorov's, from the uniform distribution, times the root of the sample's size."""
    ascending = np.sort(sample.ravel())
    steps = np.arange(ascending.size + 1) / ascending.size
    gap = max((steps[1:] - ascending).max(), (ascending - steps[:-1]).max())
    return float(gap * ascending.size**0.5)


def test_they_never_change():
    """A seed's meaning is a promise: whoever changes these numbers changes every seeded text."""
    key = Key(42, 3, 17)
    assert numbers(marks(4), key).tolist() == RECORDED
    assert numbers(marks(VOCABULARY), key)[:4].tolist() == RECORDED


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 - 1])
def test_numpy_and_torch_and_any_subset_have_the_same_bits(seed):
    every = marks(VOCABULARY)
    assert len(np.unique(every)) == VOCABULARY
    key = Key(seed, seed % 5, seed % 1000)
    whole = numbers(every, key)
    assert whole.dtype == np.int32
    assert whole.min() >= 0
    there = numbers(torch.from_numpy(every), key)
    assert there.dtype == torch.int32
    assert there.tolist() == whole.tolist()
    some = np.array([5, 77, 4000, VOCABULARY - 1])
    assert numbers(every[some], key).tolist() == whole[some].tolist()
    # The same in integers without bounds.
    for token_id in (0, 1, 77, VOCABULARY - 1):
        mixed = int(every[token_id])
        for factor, more, shift in ((key.factor_1, key.add_1, 15), (key.factor_2, key.add_2, 16)):
            mixed = (mixed * factor + more + 2**31) % 2**32 - 2**31
            mixed ^= mixed >> shift
        assert mixed == whole[token_id]


@pytest.mark.parametrize("argument", ["seed", "choice", "position"])
def test_uniform_and_independent_in(argument):
    arguments = {"seed": 7, "choice": 0, "position": 100}
    keys = [Key(**{**arguments, argument: number}) for number in range(DRAWS)]
    drawn = over_keys(keys)
    for row in (drawn[:, 0], drawn[:, -1], drawn[0:256], drawn):
        assert distance(row) < 2.2  # 1 in 8,000 by chance
    for lag in (1, 2, 16):
        assert_uncorrelated(drawn[lag:], drawn[:-lag])
        # What decides a draw is who is close to 1.
        assert_uncorrelated(drawn[lag:] > 0.98, drawn[:-lag] > 0.98)
    for apart in (1, 2, 16):
        assert_uncorrelated(drawn[:, apart:], drawn[:, :-apart])
        assert_uncorrelated(drawn[:, apart:] > 0.98, drawn[:, :-apart] > 0.98)


def test_the_least_of_a_vocabulary_is_as_small_as_of_independent_numbers():
    every = marks(VOCABULARY)
    mixed = (numbers(every, Key(3, 0, position)) for position in range(2000))
    least = [(int(row.argmin()), int(row.min())) for row in mixed]
    places = np.array([place for place, _ in least]) / VOCABULARY
    values = uniforms(np.array([value for _, value in least]))
    assert distance(places) < 2.2
    assert distance(1 - (1 - values) ** VOCABULARY) < 2.2
