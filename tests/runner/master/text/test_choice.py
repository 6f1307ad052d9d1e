from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from runner.errors import InvalidField
from runner.master.engine.requests import (
    FINISHED_BY_LENGTH,
    FINISHED_BY_STOP,
    GenerationRequest,
    TokenEvent,
    finish_reason,
)
from runner.master.text.choice import (
    ChoiceText,
    Detokenizer,
    StopStrings,
    TextPiece,
    TextRequest,
)
from runner.master.text.model_text import ModelText
from runner.sampling_parameters import SamplingParameters
from tests.lanes import examples

TEXTS = [
    "The quick brown fox.\n\n  def add(a, b):\n\treturn a + b\n",
    "Grüße aus 東京 👩‍👩‍👧‍👦 und Ελλάδα — naïve café 🇩🇪",
    "\u0f56\u0f7c\u0f51\u0f0b ไทย हिन्दी",
    "",
    "�",
]


def streamed(tokenizer: Tokenizer, ids: list[int], context: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """A vocabulary as Llama 2's: words with a leading mark, single bytes for the rest."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁Hello", "▁world", "!", "▁", "ing", "▁walk"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def ids_of(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    return [tokenizer.token_to_id(piece) for piece in pieces]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_joined_are_the_text(demo_text: ModelText, text: str) -> None:
    ids = demo_text.tokenizer.encode(text).ids
    pieces = streamed(demo_text.tokenizer, ids)
    assert "".join(pieces) == text
    if "�" not in text:
        assert not any("�" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_random_ids_give_the_decoding_of_all_ids(demo_text: ModelText, seed: int) -> None:
    numbers = random.Random(seed)
    # The first ids of the vocabulary are single bytes: many broken characters.
    limit = numbers.choice([300, 1000, demo_text.vocabulary_size])
    ids = [numbers.randrange(limit) for _ in range(200)]
    assert "".join(streamed(demo_text.tokenizer, ids)) == demo_text.decode(ids)


def test_a_character_is_shown_when_its_last_byte_has_come(byte_fallback: Tokenizer) -> None:
    ids = ids_of(
        byte_fallback, "▁Hello", "<0xE6>", "<0x9D>", "<0xB1>", "<0xE4>", "<0xBA>", "<0xAC>"
    )
    assert streamed(byte_fallback, ids) == ["Hello", "", "", "東", "", "", "京", ""]


def test_an_incomplete_character_at_the_end_is_not_lost(byte_fallback: Tokenizer) -> None:
    pieces = streamed(byte_fallback, ids_of(byte_fallback, "▁Hello", "<0xE6>", "<0x9D>"))
    assert pieces[:3] == ["Hello", "", ""]
    assert set(pieces[3]) == {"�"}


def test_spaces_between_words_survive_and_the_first_is_stripped(byte_fallback: Tokenizer) -> None:
    ids = ids_of(byte_fallback, "▁Hello", "▁world", "!", "▁walk", "ing")
    assert streamed(byte_fallback, ids) == ["Hello", " world", "!", " walk", "ing", ""]


def test_special_tokens_cost_the_next_word_no_space(byte_fallback: Tokenizer) -> None:
    ids = ids_of(byte_fallback, "▁Hello", "<s>", "<s>", "▁world")
    assert "".join(streamed(byte_fallback, ids)) == "Hello world"


def test_a_text_that_continues_a_prompt_keeps_its_leading_space(byte_fallback: Tokenizer) -> None:
    context = tuple(ids_of(byte_fallback, "<s>", "▁Hello"))
    assert streamed(byte_fallback, ids_of(byte_fallback, "▁world"), context) == [" world", ""]


def test_a_prompt_that_ends_inside_a_character_is_completed(byte_fallback: Tokenizer) -> None:
    context = tuple(ids_of(byte_fallback, "▁Hello", "<0xE6>", "<0x9D>"))
    assert "".join(streamed(byte_fallback, ids_of(byte_fallback, "<0xB1>"), context)) == "東"


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += matcher.push(piece)
        if matcher.matched:
            return text, True
    return text + matcher.flush(), False


def test_a_match_across_the_border_of_two_pieces_ends_the_text_before_it() -> None:
    assert shown(["END"], ["one E", "N", "D two"]) == ("one ", True)


def test_text_that_may_begin_a_stop_string_is_held_back_until_certain() -> None:
    matcher = StopStrings(["END"])
    assert matcher.push("x EN") == "x "
    assert matcher.push("C") == "ENC"
    assert matcher.push("E") == ""
    assert matcher.flush() == "E"


def test_the_match_that_ends_first_wins() -> None:
    assert shown(["abcd", "bc"], ["xabcd"]) == ("xa", True)
    assert shown(["bc", "abc"], ["xabcd"]) == ("x", True)


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert StopStrings([]).push("abc") == "abc"


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 30), max_size=5),
)
def test_the_result_does_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(borders)]
    expected = shown(stops, list(text))
    assert shown(stops, pieces) == expected
    if not expected[1]:
        assert expected[0] == text
        assert not any(stop in text for stop in stops)


@pytest.mark.parametrize("stop", ["\n\n", "é", "```"])
def test_repeated_beginnings_do_not_hide_a_match(stop: str) -> None:
    assert shown([stop], list("x" + stop[0] + stop)) in [
        ("x" + stop[0], True),
        ("x", True),
    ]


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


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_a_text_goes_on_after_its_ids(demo_text: ModelText, data: st.DataObject) -> None:
    """Every id is in one piece, that of the end and those of a stop string too, and the pieces
    after any of them are those that come when the ids before are taken again."""
    ids = data.draw(st.lists(st.integers(0, 400), min_size=1, max_size=30))
    stops = data.draw(st.lists(st.text("ab e", min_size=1, max_size=3), max_size=2))
    sampling = SamplingParameters(stop_token_ids=data.draw(st.sampled_from([(), (ids[-1],)])))
    asked = GenerationRequest((1, 2), data.draw(st.integers(1, len(ids))), sampling)
    request = TextRequest(asked, tuple(stops), continues_prompt=data.draw(st.booleans()))

    def pushed(text: ChoiceText, first: int) -> list[TextPiece]:
        pieces = []
        for count, token_id in enumerate(ids[first:], start=first + 1):
            event = TokenEvent(token_id, finish_reason=finish_reason(asked, token_id, count))
            if piece := text.push(event):
                pieces.append(piece)
            if text.finished:
                break
        return pieces

    pieces = pushed(ChoiceText(demo_text, request), 0)
    taken = [token_id for piece in pieces for token_id in piece.ids]
    assert taken == ids[: len(taken)]
    assert [piece.tokens for piece in pieces[-1:]] == [len(taken)] * len(pieces[-1:])

    cut = data.draw(st.integers(0, len(pieces)))
    kept = [token_id for piece in pieces[:cut] for token_id in piece.ids]
    carried = ChoiceText(demo_text, request)
    carried.go_on(asked, kept)
    assert carried.delivered == pieces[:cut]
    assert carried.finished == (cut == len(pieces) and pieces[-1].finish_reason is not None)
    if not carried.finished:
        assert pushed(carried, len(kept)) == pieces[cut:]


def test_ids_beyond_the_end_are_refused(demo_text: ModelText) -> None:
    asked = GenerationRequest((1,), 9, SamplingParameters(stop_token_ids=(7,)))
    text = ChoiceText(demo_text, TextRequest(asked, index=2))
    with pytest.raises(InvalidField, match=r"carry.ids\[2\] = '3 ids': .* which is its id 2"):
        text.go_on(asked, (5, 7, 5))
