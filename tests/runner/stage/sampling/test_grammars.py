"""Requests whose tokens follow a grammar, with the demo model's tokenizer and scores by chance."""

from __future__ import annotations

import json
import random
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer

from runner.grammar import Grammar, GrammarFault
from runner.master.api.grammar_fields import JSON_OPTIONS
from runner.sampling_parameters import SamplingParameters
from runner.stage.sampling import grammars
from runner.stage.sampling.grammars import Followed, Grammars, Ungrammatical
from runner.stage.sampling.sampler import Sampler
from runner.steps import Admission, Refusal, SampledToken, Segment, Step
from tests.runner.master.conftest import demo_folder  # noqa: F401  fixture
from tests.waiting import wait_for

VOCABULARY = 49152 + 8  # the head is padded
END, OTHER_END = 2, 0  # <|im_end|>, <|endoftext|>
PROMPT = (5, 6, 7, 8)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 2},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}
JSON = Grammar.of([{"json_schema": {**PERSON, **JSON_OPTIONS}}], "").text
REGEX = Grammar.of([{"lark_grammar": "start: /[a-c]{3}-[0-9]{2}/"}], "").text
LONG = Grammar.of([{"lark_grammar": "start: /([a-c]{3} ){400}/"}], "").text
# What may come next is found within the library's limits for short answers only.
GROWING = Grammar.of([{"lark_grammar": "start: /([a-z ]*a[a-z ]{30})*1/"}], "").text
# The library finds out that it is too much when it is asked what may come first.
EXPLODING = Grammar.of([{"lark_grammar": "start: /(.{1,1000}){1,1000}/"}], "").text


@pytest.fixture(scope="module")
def file(demo_folder: Path) -> Path:  # noqa: F811
    return demo_folder / "tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(file))


@pytest.fixture(scope="module")
def sampler(file: Path) -> Sampler:
    return Sampler(VOCABULARY, "cpu", file)


def scores(request: int, position: int) -> torch.Tensor:
    """The model: what it says depends on request and position alone."""
    generator = torch.Generator().manual_seed(1000 * request + position)
    row = torch.randn(VOCABULARY, generator=generator) * 3
    row[END] += 5
    return row


@dataclass
class Asked:
    number: int
    grammar: str = ""
    sampling: SamplingParameters = field(
        default_factory=lambda: SamplingParameters(temperature=0, stop_token_ids=(END,))
    )
    emitted: list[int] = field(default_factory=list)
    told: list[SampledToken] = field(default_factory=list)
    donor: int = 0
    reused: int = 0

    def admission(self) -> Admission:
        return Admission(
            self.number,
            2000,
            len(PROMPT),
            0,
            7,
            self.sampling,
            self.donor,
            self.reused,
            self.grammar,
        )

    @property
    def known(self) -> list[int]:
        return [*PROMPT, *self.emitted]

    @property
    def ended(self) -> bool:
        return bool(self.emitted) and self.emitted[-1] in self.sampling.stop_token_ids


def one_step(sampler: Sampler, parts: list[tuple[Asked, int]]) -> list[SampledToken]:
    """Each request's known ids from a position on."""
    segments = tuple(
        Segment(asked.number, start, len(asked.known) - start, len(asked.known), True)
        for asked, start in parts
    )
    ids = [token_id for asked, start in parts for token_id in asked.known[start:]]
    step = Step(1, segments, ids)
    sampler.extend(step)
    rows = torch.stack([scores(asked.number, len(asked.known)) for asked, _ in parts])
    return sampler.sample(step, rows)


def run(sampler: Sampler, *together: Asked, most: int = 300) -> list[Refusal]:
    """Until all have ended, or one is refused; the ids are those known before, and the new ones."""
    for asked in together:
        sampler.admit(asked.admission())
    sent = {asked.number: asked.reused for asked in together}
    while going := [one for one in together if not one.ended and len(one.emitted) < most]:
        tokens = {
            token.request: token
            for token in one_step(sampler, [(one, sent[one.number]) for one in going])
        }
        if refused := sampler.take_refused():
            return refused
        for one in going:
            sent[one.number] = len(one.known) - 1
            if (token := tokens.get(one.number)) is not None:
                assert token.position == len(one.known)
                sent[one.number] += 1
                one.emitted.append(token.token_id)
                one.told.append(token)
    return []


def text(tokenizer: Tokenizer, asked: Asked) -> str:
    return tokenizer.decode(asked.emitted, skip_special_tokens=True)


SAMPLINGS: dict[str, Any] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.5},
    "filtered": {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "nucleus": {"temperature": 1.0, "top_p": 0.5},
    "floor": {"temperature": 1.0, "min_p": 0.1},
    "penalties": {
        "temperature": 0.8,
        "repetition_penalty": 1.5,
        "frequency_penalty": 1.0,
        "presence_penalty": 1.0,
        "logit_bias": {9: 100.0, 504: -100.0},
    },
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_answers_are_what_the_grammar_says(
    sampler: Sampler, tokenizer: Tokenizer, name: str
) -> None:
    sampling = SamplingParameters(stop_token_ids=(END,), **SAMPLINGS[name])
    person, word = Asked(1, JSON, sampling), Asked(2, REGEX, sampling)
    assert run(sampler, person, word) == []
    jsonschema.validate(json.loads(text(tokenizer, person)), PERSON)
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", text(tokenizer, word))
    assert person.emitted[-1] == word.emitted[-1] == END


def test_what_is_cut_off_is_the_beginning_of_an_answer(
    sampler: Sampler, tokenizer: Tokenizer
) -> None:
    whole, cut = Asked(1, JSON), Asked(1, JSON)
    run(sampler, whole)
    run(sampler, cut, most=6)
    assert text(tokenizer, whole).startswith(text(tokenizer, cut))
    assert not cut.ended


def test_who_has_none_is_not_touched(sampler: Sampler, file: Path) -> None:
    alone = Asked(3)
    run(Sampler(VOCABULARY, "cpu"), alone, most=20)
    beside, person = Asked(3), Asked(1, JSON)
    run(sampler, beside, person, most=20)
    assert beside.emitted == alone.emitted
    assert len(person.emitted) > 10


def test_an_answer_goes_on_after_a_loss(sampler: Sampler, file: Path) -> None:
    """The stage is another process; the first segment has prompt and emitted ids."""
    sampling = SamplingParameters(temperature=1.2, stop_token_ids=(END,))
    whole = Asked(1, JSON, sampling)
    run(sampler, whole)
    for count in (1, len(whole.emitted) // 2, len(whole.emitted) - 1):
        replayed = Asked(1, JSON, sampling, emitted=whole.emitted[:count])
        assert run(Sampler(VOCABULARY, "cpu", file), replayed) == []
        assert replayed.emitted == whole.emitted


def test_an_answer_goes_on_after_what_its_donor_has(sampler: Sampler) -> None:
    whole, donor = Asked(1, JSON), Asked(8, JSON)
    run(sampler, whole)
    donor.emitted = whole.emitted[:5]
    sampler.admit(donor.admission())
    one_step(sampler, [(donor, 0)])
    replayed = Asked(1, JSON, emitted=whole.emitted[:7], donor=8, reused=len(PROMPT) + 4)
    assert run(sampler, replayed) == []
    assert replayed.emitted == whole.emitted


def test_a_step_that_is_computed_twice_counts_once(sampler: Sampler) -> None:
    whole, again = Asked(1, JSON), Asked(1, JSON)
    run(sampler, whole)
    sampler.admit(again.admission())
    for expected in whole.emitted:
        start = len(again.known) - 1 if again.emitted else 0
        for _ in range(2):
            tokens: list[SampledToken] = []
            while not tokens:
                tokens = one_step(sampler, [(again, start)])
            assert tokens[0].token_id == expected
        again.emitted.append(expected)


def test_log_probabilities_are_those_of_what_is_allowed(
    sampler: Sampler, tokenizer: Tokenizer
) -> None:
    sampling = SamplingParameters(temperature=0, stop_token_ids=(END,), logprobs=20)
    asked = Asked(1, Grammar.of([{"lark_grammar": 'start: "ab" | "c"'}], "").text, sampling)
    run(sampler, asked)
    first = asked.told[0]
    assert {tokenizer.id_to_token(token_id) for token_id, _ in first.alternatives} == {
        "a",
        "ab",
        "c",
    }
    expected = scores(1, len(PROMPT))[[token_id for token_id, _ in first.alternatives]]
    found = torch.tensor([logprob for _, logprob in first.alternatives])
    assert torch.allclose(found, expected.log_softmax(-1), atol=1e-5)
    assert (first.token_id, first.logprob) == first.alternatives[0]
    assert asked.told[-1].alternatives == ((END, 0.0),)


def test_an_answer_ends_where_the_grammar_may_end(sampler: Sampler, tokenizer: Tokenizer) -> None:
    """Whichever of the stop ids; what the tokenizer takes for one, and the request does not, is
    none."""
    grammar = Grammar.of([{"lark_grammar": "start: /(ab){2,}/"}], "").text
    asked = Asked(1, grammar, SamplingParameters(temperature=0, stop_token_ids=(9, OTHER_END)))
    run(sampler, asked, most=40)
    assert END not in asked.emitted
    found = text(tokenizer, Asked(1, emitted=[i for i in asked.emitted if i not in (9, OTHER_END)]))
    assert re.fullmatch("(ab){2,}", found) or not asked.ended


@pytest.mark.parametrize(
    ("grammar", "emitted", "fault"),
    [
        (EXPLODING, [], GrammarFault.TOO_COMPLEX),
        (REGEX, [30, 31, 32], GrammarFault.NOT_FOLLOWED),
        ('{"grammars": [{"lark_grammar": "start: <no_such_token>"}]}', [], GrammarFault.UNBUILT),
        ("nonsense", [], GrammarFault.UNBUILT),
    ],
)
def test_who_cannot_go_on_is_refused_and_nobody_else(
    sampler: Sampler, grammar: str, emitted: list[int], fault: GrammarFault
) -> None:
    asked, other = Asked(4, grammar, emitted=emitted), Asked(5, REGEX)
    assert run(sampler, asked, other) == [Refusal(4, fault)]
    assert run(sampler, other) == []
    assert other.ended


def test_an_answer_that_becomes_too_complex_takes_no_others_with_it(
    file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matchers of one grammar share a lexer, whose states have a limit."""
    monkeypatch.setattr(grammars, "_LEXER_STATES", 2_000)
    held = Grammars(file, VOCABULARY)

    def allowed(followed: Followed, *ids: int) -> list[int]:
        followed.ask([*PROMPT, *ids], len(PROMPT) + len(ids))
        return followed.answered.result().tolist()

    before, long, behind = (Followed(held, Asked(1, GROWING).admission()) for _ in range(3))
    first = allowed(before)
    [one] = tokenizer.encode("1", add_special_tokens=False).ids
    assert one in first
    letters = random.Random(1).choices("ab", k=1000)
    ids = tokenizer.encode("".join(letters), add_special_tokens=False).ids

    def go_on() -> None:
        for count in range(len(ids)):
            allowed(long, *ids[:count])

    with pytest.raises(Ungrammatical) as raised:
        go_on()
    assert raised.value.fault is GrammarFault.TOO_COMPLEX
    assert allowed(behind) == first
    assert END in allowed(behind, one)
    assert END in allowed(before, one)


def test_a_refusal_that_was_not_told_is_of_its_epoch(file: Path) -> None:
    """A step may fail behind it; request numbers are another master's then."""
    sampler, asked = Sampler(VOCABULARY, "cpu", file), Asked(1, "nonsense")
    sampler.admit(asked.admission())

    def refused() -> bool:
        one_step(sampler, [(asked, 0)])
        return bool(sampler._refused)

    wait_for(refused, 60, "it is refused")
    sampler.reset()
    assert sampler.take_refused() == []


def test_without_a_tokenizer_no_grammar_is_followed(tmp_path: Path) -> None:
    sampler = Sampler(VOCABULARY, "cpu", tmp_path / "tokenizer.json")
    assert run(sampler, Asked(1, REGEX)) == [Refusal(1, GrammarFault.UNBUILT)]


def test_a_grammar_that_takes_long_keeps_nobody_waiting(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    build = Grammars.build

    def slowly(self: Grammars, text: str, end: int):
        if text == JSON:
            let_go.wait()
        return build(self, text, end)

    monkeypatch.setattr(Grammars, "build", slowly)
    sampler = Sampler(VOCABULARY, "cpu", file)
    slow, quick, plain = Asked(1, JSON), Asked(2, REGEX), Asked(3)
    sampler.admit(slow.admission())
    sampler.admit(quick.admission())
    sampler.admit(plain.admission())
    # The tokenizer is read with the first grammar, which takes a while too.
    wait_for(
        lambda: len(one_step(sampler, [(slow, 3), (quick, 3), (plain, 3)])) == 2, 60, "two tokens"
    )
    assert one_step(sampler, [(slow, 3)]) == []
    let_go.set()
    wait_for(lambda: len(one_step(sampler, [(slow, 3)])) == 1, 60, "the slow one's token")


def test_a_grammar_is_built_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(VOCABULARY, "cpu", file)
    first = Asked(1, REGEX)
    run(sampler, first)
    monkeypatch.setattr(grammars, "_read", None)
    monkeypatch.setattr("llguidance.LLMatcher", None)
    second = Asked(1, REGEX)
    run(sampler, second)
    assert second.emitted == first.emitted


def test_a_long_answer_is_followed_again_from_its_beginning(sampler: Sampler, file: Path) -> None:
    whole = Asked(1, LONG)
    run(sampler, whole, most=200)
    replayed = Asked(1, LONG, emitted=whole.emitted[:-20])
    run(Sampler(VOCABULARY, "cpu", file), replayed, most=200)
    assert replayed.emitted == whole.emitted


def test_what_is_asked_of_one_place_is_asked_once(file: Path) -> None:
    followed = Followed(Grammars(file, VOCABULARY), Asked(1, REGEX).admission())
    followed.ask(PROMPT, len(PROMPT))
    pending = followed.answered
    followed.ask(PROMPT, len(PROMPT))
    assert followed.answered is pending
    assert len(pending.result()) > 3
