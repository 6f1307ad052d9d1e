"""An open request's known ids, its tokens, and what starts over."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runner.master.engine.requests import GenerationRequest, OpenRequest, RequestLedger, TokenEvent
from runner.sampling_parameters import SamplingParameters
from runner.steps import SampledToken


def add(ledger: RequestLedger, prompt: list[int], new_tokens: int, **sampling: Any) -> OpenRequest:
    parameters = SamplingParameters(**sampling)
    request = GenerationRequest(tuple(prompt), new_tokens, parameters)
    return ledger.add(request, lambda _event: None)


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(0, 9)), st.data())
def test_ids_are_a_slice_of_prompt_and_emitted(
    prompt: list[int], emitted: list[int], data: st.DataObject
) -> None:
    request = add(RequestLedger(), prompt, 100)
    request.emitted = emitted
    known = prompt + emitted
    start = data.draw(st.integers(0, len(known) - 1))
    length = data.draw(st.integers(1, len(known) - start))
    assert request.ids(start, length) == known[start : start + length]
    assert request.known == len(known)


def test_seed_is_drawn_once_and_kept() -> None:
    ledger = RequestLedger()
    drawn, given_seed = add(ledger, [1], 1), add(ledger, [1], 1, seed=5)
    assert drawn.sampling.seed == drawn.seed == drawn.admission().seed
    assert given_seed.seed == 5
    assert add(ledger, [1], 1).seed != drawn.seed


def test_only_the_next_position_is_accepted() -> None:
    request = add(RequestLedger(), [1, 2, 3], 3)
    assert request.accept(SampledToken(1, 3, 7)) is None  # nobody asked
    request.awaiting = True
    assert request.accept(SampledToken(1, 2, 7)) is None
    assert request.accept(SampledToken(1, 4, 7)) is None
    assert request.accept(SampledToken(1, 3, 7)) == TokenEvent(7)
    assert request.accept(SampledToken(1, 3, 7)) is None  # the same again
    assert request.emitted == [7]


def test_start_over_keeps_what_was_delivered() -> None:
    request = add(RequestLedger(), [1, 2, 3], 9)
    request.held = request.prefilled = request.awaiting = True
    request.sent = 3
    request.accept(SampledToken(1, 3, 7))
    request.start_over()
    assert (request.sent, request.held, request.prefilled) == (0, False, False)
    assert request.ids(0, request.known) == [1, 2, 3, 7]
    assert request.admission().prompt_length == 3
    assert request.admission().capacity == 12


def test_removed_once() -> None:
    ledger = RequestLedger()
    request = add(ledger, [1], 1)
    assert ledger.remove(request.number) is request
    assert ledger.remove(request.number) is None
    assert not ledger.open
