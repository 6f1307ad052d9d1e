from __future__ import annotations

from runner.master.engine.requests import (
    FINISHED_BY_LENGTH,
    FINISHED_BY_STOP,
    GenerationRequest,
    TokenEvent,
)
from runner.master.text.choice import ChoiceText, TextPiece, TextRequest
from runner.master.text.model_text import ModelText
from runner.sampling_parameters import SamplingParameters


def pieces_of(text: ModelText, written: str, ending: str, *stops: str) -> list[TextPiece]:
    """The pieces of `written`, its last token carrying `ending`, or an end id after it."""
    ids = text.tokenizer.encode(written).ids
    events = [TokenEvent(token_id) for token_id in ids]
    if ending == FINISHED_BY_STOP:
        events.append(TokenEvent(text.eos_ids[0], finish_reason=ending))
    else:
        events[-1] = TokenEvent(ids[-1], finish_reason=ending)
    request = GenerationRequest((1, 2, 3), 100, SamplingParameters())
    choice = ChoiceText(text, TextRequest(request, stops))
    pieces = []
    for event in events:
        if piece := choice.push(event):
            pieces.append(piece)
            if piece.finish_reason is not None:
                break
    return pieces


def test_the_end_id_is_counted_but_gives_neither_text_nor_event(demo_text: ModelText) -> None:
    pieces = pieces_of(demo_text, "one two three", FINISHED_BY_STOP)
    assert "".join(piece.text for piece in pieces) == "one two three"
    assert pieces[-1].tokens == sum(len(piece.events) for piece in pieces) + 1
    assert pieces[-1].finish_reason == FINISHED_BY_STOP


def test_text_held_back_is_released_at_the_end(demo_text: ModelText) -> None:
    pieces = pieces_of(demo_text, "one two thr", FINISHED_BY_LENGTH, "three")
    assert "".join(piece.text for piece in pieces) == "one two thr"
    assert pieces[-1].finish_reason == FINISHED_BY_LENGTH


def test_a_stop_string_in_the_last_token_is_a_stop_not_a_length(demo_text: ModelText) -> None:
    pieces = pieces_of(demo_text, "one two three", FINISHED_BY_LENGTH, "three")
    assert "".join(piece.text for piece in pieces) == "one two "
    assert pieces[-1].finish_reason == FINISHED_BY_STOP


def test_tokens_of_the_stop_string_have_no_event(demo_text: ModelText) -> None:
    pieces = pieces_of(demo_text, "one two three four", FINISHED_BY_STOP, " two three")
    events = [event for piece in pieces for event in piece.events]
    assert demo_text.decode([event.token_id for event in events]) == "one"


def test_an_incomplete_character_at_the_limit_is_shown_as_such(demo_text: ModelText) -> None:
    ids = demo_text.tokenizer.encode("x 東").ids
    whole = demo_text.decode(ids[:-1])
    assert whole.endswith("\ufffd")
    request = GenerationRequest((1,), 100, SamplingParameters())
    choice = ChoiceText(demo_text, TextRequest(request))
    events = [TokenEvent(token_id) for token_id in ids[:-2]]
    events.append(TokenEvent(ids[-2], finish_reason=FINISHED_BY_LENGTH))
    pieces = [piece for event in events if (piece := choice.push(event))]
    assert "".join(piece.text for piece in pieces) == whole
