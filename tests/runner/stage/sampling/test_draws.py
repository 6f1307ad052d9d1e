"""The draw: right by distribution, and the same where scores differ in their last bits only."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from runner.stage.sampling import draws
from runner.stage.sampling.draws import LEAST_NOISE, MOST_NOISE, Draws, value
from runner.stage.sampling.noise import BITS, Key, marks, numbers
from tests.lanes import examples

torch.set_num_threads(1)
CPU = torch.device("cpu")
VOCABULARY = 4000


def made(seed: int, spread: float, vocabulary: int = VOCABULARY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(vocabulary, generator=generator) * spread
    return scores - scores.max()


def among_all(scores: torch.Tensor, key: Key) -> int:
    """The draw without a bound: every id's value."""
    mixed = numbers(marks(scores.shape[0]), key).tolist()
    values = [value(*pair) for pair in zip(scores.tolist(), mixed, strict=True)]
    return values.index(max(values))


@pytest.mark.parametrize("spread", [0, 0.1, 1, 3, 10, 100])
def test_nobody_else_could_win(spread):
    drawing = Draws(VOCABULARY, CPU)
    for position in range(examples(40)):
        scores, key = made(position, spread), Key(5, 0, position)
        assert drawing.draw(scores, None, key) == among_all(scores, key)


def test_of_one_two_and_masked_ids():
    drawing = Draws(VOCABULARY, CPU)
    masked = torch.full((VOCABULARY,), -torch.inf)
    masked[7] = 0.0
    for position in range(50):
        key = Key(1, 0, position)
        assert drawing.draw(masked, None, key) == 7
        assert drawing.draw(torch.zeros(1), torch.tensor([9]), key) == 0
        pair = torch.tensor([-3.0, 0.0])
        there = numbers(marks(VOCABULARY)[[4, 9]], key).tolist()
        wanted = value(0.0, there[1]) > value(-3.0, there[0])
        assert drawing.draw(pair, torch.tensor([4, 9]), key) == int(wanted)


def test_the_bounds_of_the_noise():
    last = 2**BITS - 1
    assert value(0.0, 0) == pytest.approx(MOST_NOISE, abs=1e-6)
    assert value(0.0, last) == pytest.approx(LEAST_NOISE, abs=1e-6)
    assert value(0.0, 1) < MOST_NOISE
    assert value(0.0, last - 1) > LEAST_NOISE
    assert pytest.approx(25.28, abs=0.01) == MOST_NOISE - LEAST_NOISE


def test_an_estimate_is_never_below_its_value_and_what_is_reached_never_above():
    """At the ends of what numbers there are, at powers of two, and at random ones."""
    source = random.Random(3)
    powers = [2**power + step for power in range(2, BITS) for step in (-2, -1, 0, 1, 2)]
    every = [0, 1, 2**BITS - 2, 2**BITS - 1, *powers]
    every += [source.randrange(2**BITS) for _ in range(2000)]
    for number in every:
        uniform = np.float32(number) + np.float32(0.5)
        logarithm = float(uniform.view(np.int32)) * math.log(2) / 2**23
        for score in (0.0, -0.5, -20.0):
            estimate = score - logarithm + math.log(2) * (127 + BITS)
            assert value(score, number) <= estimate + 1e-5
            assert draws._reached(estimate) <= value(score, number)


@pytest.mark.parametrize("spread", [0, 1, 3, 30])
def test_a_device_finds_the_same_winner(spread):
    """The code for a GPU, run here: its rivals are those of the CPU's code or more."""
    every = marks(VOCABULARY)
    for position in range(60):
        scores, key = made(position, spread), Key(5, 0, position)
        here = draws.rivals_on_host(scores.numpy(), every, key)
        there = draws.rivals_on_device(scores, torch.from_numpy(every), key)
        assert set(zip(*here, strict=True)) <= set(zip(*there, strict=True))
        values = [value(*pair) for pair in zip(*there[1:], strict=True)]
        assert there[0][values.index(max(values))] == among_all(scores, key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_cuda_draw_the_same():
    cuda = torch.device("cuda")
    here, there = Draws(VOCABULARY, CPU), Draws(VOCABULARY, cuda)
    for position in range(200):
        scores, key = made(position, 3), Key(5, 0, position)
        assert there.draw(scores.to(cuda), None, key) == here.draw(scores, None, key)


@pytest.mark.parametrize("spread", [0.5, 1, 3])
def test_other_last_bits_hardly_ever_give_another_id(spread):
    drawing, changed, tries = Draws(VOCABULARY, CPU), 0, examples(2000)
    for position in range(tries):
        scores, key = made(position % 20, spread), Key(11, 0, position)
        noise = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(position))
        near = scores * (1 + 1e-6 * noise)
        changed += drawing.draw(scores, None, key) != drawing.draw(near, None, key)
    assert changed <= tries / 1000


def chi_square(seen: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations of what it is when `expected` holds."""
    likely = expected >= 5
    freedom = int(likely.sum()) - 1
    found = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
    return float((found - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("argument", ["seed", "choice", "position"])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_the_winner_is_distributed_as_softmax_is(temperature, argument):
    vocabulary, tries = 12, examples(6000)
    scores = made(4, 1.5 / temperature, vocabulary)
    drawing, arguments = Draws(vocabulary, CPU), {"seed": 3, "choice": 1, "position": 9}
    seen = np.zeros(vocabulary)
    for number in range(tries):
        seen[drawing.draw(scores, None, Key(**{**arguments, argument: number}))] += 1
    assert chi_square(seen, torch.softmax(scores.double(), -1).numpy() * tries) < 5


@pytest.mark.parametrize("other", ["seed", "choice", "position"])
def test_neighbouring_draws_are_independent(other):
    """Pairs of equal arguments but for one, which is one higher."""
    vocabulary, tries = 6, examples(6000)
    scores = made(2, 1.0, vocabulary)
    drawing = Draws(vocabulary, CPU)
    seen = np.zeros((vocabulary, vocabulary))
    for number in range(tries):
        arguments = {"seed": 5 * number, "choice": 0, "position": 2 * number}
        one = drawing.draw(scores, None, Key(**arguments))
        arguments[other] += 1
        seen[one, drawing.draw(scores, None, Key(**arguments))] += 1
    alone = torch.softmax(scores.double(), -1).numpy()
    assert chi_square(seen, np.outer(alone, alone) * tries) < 5
