"""An open request's known ids, its tokens, and what starts over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.master.engine.requests import (
    FINISHED_BY_LENGTH,
    Carried,
    GenerationRequest,
    OpenRequest,
    RequestLedger,
    TokenEvent,
)
from runner.sampling_parameters import SamplingParameters
from runner.steps import SampledToken


def add(ledger: RequestLedger, prompt: list[int], new_tokens: int, **sampling: Any) -> OpenRequest:
    parameters = SamplingParameters(seed=1, **sampling)
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


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_carried_goes_on_after_its_ids(alone: bool) -> None:
    parameters = SamplingParameters(seed=5, stop_token_ids=(9,))
    carried = Carried((7, 8), alone)
    asked = GenerationRequest((1, 2, 3), 4, parameters, choice=2, carried=carried)
    request = RequestLedger().add(asked, lambda _event: None)
    assert request.ids(0, request.known) == [1, 2, 3, 7, 8]
    admission = request.admission()
    assert (admission.prompt_length, admission.capacity) == (3, 7)
    assert (admission.seed, admission.choice) == (5, 2)
    assert request.tried_alone == alone
    request.came_back(4)
    assert request.tried_alone == alone
    request.came_back(5)
    assert not request.tried_alone
    request.awaiting = True
    assert request.accept(SampledToken(1, 5, 6)) == TokenEvent(6)
    request.awaiting = True
    event = request.accept(SampledToken(1, 6, 4))
    assert event is not None
    assert event.finish_reason == FINISHED_BY_LENGTH


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
