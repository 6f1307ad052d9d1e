from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from runner.master.text.detokenizer import Detokenizer
from runner.master.text.model_text import ModelText

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
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[piece] for piece in pieces]


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
