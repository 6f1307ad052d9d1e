"""Requests that go on where a dead master stopped: nothing lost, nothing twice, as if uncut."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.carry import FIELD, Carry
from contract.carry import field as as_field
from runner.master.api import carried
from runner.master.text.model_text import ModelText
from tests.lanes import examples
from tests.runner.master.api.carried_answers import ASKS, Told, ask, new_master, read
from tests.runner.master.engine.stand_in_group import COMMIT, VOCABULARY
from tests.runner.master.serving import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Asked = tuple[str, dict[str, Any]]


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """A body of either endpoint, whose answer is a random text of up to 24 tokens a choice."""
    path = draw(st.sampled_from([CHAT, COMPLETIONS]))
    body: dict[str, Any] = {"model": MODEL, "max_tokens": draw(st.integers(1, 24))}
    body["n"] = draw(st.integers(1, 3))
    body["seed"] = draw(st.integers(0, 2**63 - 1))
    if path == CHAT:
        body["messages"] = [{"role": "user", "content": draw(st.text(min_size=1, max_size=20))}]
        if draw(st.booleans()):
            body |= {"logprobs": True, "top_logprobs": draw(st.integers(0, 2))}
    else:
        prompts = st.text("ab →", min_size=1, max_size=9)
        body["prompt"] = draw(prompts | st.lists(prompts, min_size=1, max_size=2))
        extras: list[dict[str, Any]] = [{"echo": True}, {"logprobs": 2}, {}]
        body |= draw(st.sampled_from(extras))
    if draw(st.booleans()):
        body["stream"] = True
        body["stream_options"] = {
            name: draw(st.booleans()) for name in ("include_usage", "continuous_usage_stats")
        }
    return path, body


async def uncut(text: ModelText, path: str, body: dict[str, Any]) -> Told:
    told = read((await ask(text, path, body)).content)
    assert told.done
    return told


def ends_of(told: Told) -> tuple[list[int], str]:
    """A token that the first choice has, and its text."""
    ids = [token for _, advance in told.parts if advance.index == 0 for token in advance.ids]
    shown = [choice for event in events(told) for choice in event["choices"]]
    texts = [choice.get("text") or content(choice) for choice in shown if choice["index"] == 0]
    return ids, "".join(texts)


def content(choice: dict[str, Any]) -> str:
    said: dict[str, Any] = choice.get("delta") or choice.get("message") or {}
    return said.get("content") or ""


def events(told: Told) -> list[dict[str, Any]]:
    return [event for part, _ in told.parts for event in part] + told.end


def by_choice(said: list[dict[str, Any]], stream: bool) -> Any:
    """Events as a client can tell them apart: choices come side by side in any order, and the
    usage so far, of all of them, with the order."""
    indices = {choice["index"] for event in said for choice in event["choices"]}
    if not stream or len(indices) < 2:
        return said
    return [
        [
            event | {"usage": bool(event.get("usage"))} if event["choices"] else event
            for event in said
            if not event["choices"] or event["choices"][0]["index"] == index
        ]
        for index in sorted(indices)
    ]


@settings(max_examples=examples(80), deadline=None, suppress_health_check=list(HealthCheck))
@given(asked(), st.data())
def test_delivered_and_carried_are_the_uncut_answer(
    demo_text: ModelText, asked: Asked, data: st.DataObject
) -> None:
    path, body = asked

    async def run() -> None:
        told = await uncut(demo_text, path, body)
        # The same again, which now may end at something that it has.
        ids, shown = ends_of(told)
        if shown and data.draw(st.booleans()):
            start = data.draw(st.integers(0, len(shown) - 1))
            body["stop"] = shown[start : start + data.draw(st.integers(1, 12))]
        if data.draw(st.booleans()):
            body["stop_token_ids"] = [data.draw(st.sampled_from(ids))]
        whole = await uncut(demo_text, path, body)
        stream = bool(body.get("stream"))

        delivered: list[dict[str, Any]] = []
        carry: Carry | None = None
        told, first = whole, whole.beginning
        for _ in range(data.draw(st.integers(1, 3))):
            kept = data.draw(st.integers(0, len(told.parts)))
            delivered += [event for part, _ in told.parts[:kept] for event in part]
            carry = told.carry(carry, kept)
            told = await uncut_after(demo_text, path, body, carry, first.id)
        assert by_choice(delivered + events(told), stream) == by_choice(events(whole), stream)

    asyncio.run(run())


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_an_echoed_prompt_is_told_once(demo_text: ModelText, prompt: str | list[str]) -> None:
    """Also where other choices go on between the prompt and the first whole character."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "n": 2, "seed": 0}
    body |= {"echo": True, "stream": True}

    async def run() -> None:
        whole = await uncut(demo_text, COMPLETIONS, body)
        for kept in range(len(whole.parts) + 1):
            delivered = [event for part, _ in whole.parts[:kept] for event in part]
            carry = whole.carry(None, kept)
            told = await uncut_after(demo_text, COMPLETIONS, body, carry, whole.beginning.id)
            assert by_choice(delivered + events(told), True) == by_choice(events(whole), True)

    asyncio.run(run())


async def uncut_after(
    text: ModelText, path: str, body: dict[str, Any], carry: Carry, answer_id: str
) -> Told:
    """Carried over, and the first master is the only one that knows the seed."""
    unseeded = {name: value for name, value in body.items() if name != "seed"}
    answer = await ask(text, path, unseeded, carry)
    assert answer.status_code == 200, answer.text
    told = read(answer.content)
    assert told.done
    assert told.beginning == carry.beginning
    assert told.beginning.id == answer_id
    return told


def test_without_the_header_nothing_is_told_and_a_carry_goes_on(demo_text: ModelText) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 9, "seed": 3}

    async def run() -> None:
        told = await uncut(demo_text, COMPLETIONS, body)
        carry = told.carry(None, 4)
        async with new_master(demo_text) as client:
            plain = await client.post(COMPLETIONS, json=body)
            carried = await client.post(COMPLETIONS, json=body | {FIELD: as_field(carry)})
            streamed = await client.post(COMPLETIONS, json=body | {"stream": True})
        [document] = told.end
        assert carried.json() == document
        assert plain.json()["choices"] == document["choices"]
        assert b": carry" not in streamed.content

    asyncio.run(run())


def test_a_seed_that_was_drawn_is_told_and_makes_the_same_answer(demo_text: ModelText) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 9, "n": 2}

    async def run() -> None:
        drawn, other = [await uncut(demo_text, COMPLETIONS, body) for _ in range(2)]
        assert drawn.beginning.seed != other.beginning.seed
        seeded = await uncut(demo_text, COMPLETIONS, body | {"seed": drawn.beginning.seed})
        assert seeded.end[0]["choices"] == drawn.end[0]["choices"]

    asyncio.run(run())


def test_log_probabilities_of_a_whole_answer_are_computed_again(demo_text: ModelText) -> None:
    """And no id is told a second time."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": 9, "logprobs": 1}

    async def run() -> None:
        told = await uncut(demo_text, COMPLETIONS, body)
        carry = told.carry(None, 4)
        after = await uncut_after(demo_text, COMPLETIONS, body, carry, told.beginning.id)
        assert after.end == told.end
        assert after.parts == told.parts[4:]

    asyncio.run(run())


def test_many_ids_are_made_into_text_beside_the_event_loop(
    demo_text: ModelText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "_MANY_IDS", 1)

    async def run() -> None:
        told = await uncut(demo_text, COMPLETIONS, BODY)
        carry = told.carry(None, 2)
        after = await uncut_after(demo_text, COMPLETIONS, BODY, carry, told.beginning.id)
        assert after.parts == told.parts[2:]

    asyncio.run(run())


def test_choices_of_equal_prompts_draw_for_themselves(demo_text: ModelText) -> None:
    body = {"model": MODEL, "prompt": ["a", "b", "a"], "n": 2, "max_tokens": 9}

    async def run() -> None:
        [document] = (await uncut(demo_text, COMPLETIONS, body)).end
        assert len({choice["text"] for choice in document["choices"]}) == 6

    asyncio.run(run())


BODY = {"model": MODEL, "prompt": "a", "max_tokens": 4, "stream": True, "seed": 8}


@pytest.mark.parametrize(
    ("changes", "of_carry", "param", "says"),
    [
        ({"seed": 9}, {}, "carry.beginning.seed", "must be 9, this request's seed"),
        ({}, {"seed": -1}, "carry.beginning.seed", "must be an integer from 0"),
        ({"n": 2}, {}, "carry.beginning.choices", "must be 2"),
        ({"prompt": "b"}, {}, "carry.beginning.prompt", "does not belong to this prompt"),
        ({}, {"ids": ((VOCABULARY,),)}, "carry.ids[0]", "must be token ids below 49152"),
        ({}, {"ids": ((-1,),)}, "carry.ids[0]", "must be token ids below 49152"),
        ({}, {"ids": ((1, 2, 3, 4, 5),)}, "carry.ids[0]", "must be at most 4"),
        ({"stop_token_ids": [7]}, {"ids": ((7, 1),)}, "carry.ids[0]", "after the choice's end"),
        ({}, {"ids": ((1,), (2,))}, "carry.ids", "must have 1 lists"),
    ],
)
def test_a_carry_that_does_not_fit_is_named(
    demo_text: ModelText, changes: dict[str, Any], of_carry: dict[str, Any], param: str, says: str
) -> None:
    async def run() -> None:
        told = await uncut(demo_text, COMPLETIONS, BODY)
        carry = as_field(told.carry(None, 1))
        for name, value in of_carry.items():
            (carry if name == "ids" else carry["beginning"])[name] = value
        async with new_master(demo_text) as client:
            answer = await client.post(
                COMPLETIONS, json=BODY | changes | {FIELD: carry}, headers=ASKS
            )
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert says in error["message"]

    asyncio.run(run())


def test_another_commit_of_the_model_is_a_conflict(demo_text: ModelText) -> None:
    async def run() -> None:
        told = await uncut(demo_text, COMPLETIONS, BODY)
        assert told.beginning.model_commit == COMMIT
        carry = told.carry(None, 1)
        other = replace(carry, beginning=replace(carry.beginning, model_commit="another"))
        answer = await ask(demo_text, COMPLETIONS, BODY, other)
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_changed", "carry.beginning.model_commit")
        assert "ask again without carry" in error["message"]

    asyncio.run(run())
