"""Reasoning models' answers through the API; templates in the families' shape."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llguidance import LLMatcher, LLTokenizer

from runner.grammar import MAX_GRAMMAR_BYTES
from runner.master.text.model_text import ModelText
from tests.runner.master.scripted_engine import ScriptedEngine
from tests.runner.master.serving import MODEL, served_engine

# Its own turns without their reasoning, and a switch that closes it in the prompt.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"
    "{% endif %}"
)
REPLAYING = (
    "{% for m in messages %}{% if m.reasoning_content %}</think>{{ m.reasoning_content }}|"
    "{% endif %}{{ m.content }}|{% endfor %}"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final"
    "{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"
)
HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
THOUGHT = "Hm.\n\nFrance → Paris 🗼.\n</think>\n\nParis.</think>"
CHANNELED = (
    "<|channel|>analysis<|message|>Hm → 🗼.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Paris."
)
MESSAGES = [{"role": "user", "content": "Where?"}]


def model_text(
    demo_folder: Path, folder: Path, template: str, special: tuple[str, ...] = ()
) -> ModelText:
    """The demo model's with this template and these tokens more."""
    shutil.copy(demo_folder / "tokenizer.json", folder)
    (folder / "chat_template.jinja").write_text(template)
    tokens = {"eos_token": "<|im_end|>", "additional_special_tokens": list(special)}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return ModelText.load(folder)


class Served:
    """A master that answers with this text, the tokens in it as their ids."""

    def __init__(self, text: ModelText, answer: str) -> None:
        ids = text.tokenizer.encode(answer, add_special_tokens=False).ids
        self.ids = [*ids, text.chat_eos_ids[0]]
        self.text, self.engine = text, ScriptedEngine(lambda _: self.ids)
        self.url = self.name = ""
        self.engine.vocabulary_size = text.vocabulary_size

    def chat(self, **body: Any) -> dict[str, Any]:
        answer = self._ask(body)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return choice

    def stream(self, **body: Any) -> list[dict[str, Any]]:
        lines = self._ask({**body, "stream": True}).text.splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
        return [json.loads(event)["choices"][0] for event in events]

    def _ask(self, body: dict[str, Any]) -> httpx.Response:
        document = {"model": MODEL, "messages": MESSAGES, **body}
        return httpx.post(f"{self.url}/v1/chat/completions", json=document, timeout=60)


@pytest.fixture
def thinking(demo_folder: Path, tmp_path: Path) -> Iterator[Served]:
    model = Served(model_text(demo_folder, tmp_path, THINKING), THOUGHT)
    with served_engine(model.engine, model.text) as model.url:
        yield model


@pytest.fixture
def channels(demo_folder: Path, tmp_path: Path) -> Iterator[Served]:
    model = Served(model_text(demo_folder, tmp_path, CHANNELS, HARMONY), CHANNELED)
    with served_engine(model.engine, model.text) as model.url:
        yield model


def joined(chunks: list[dict[str, Any]], name: str) -> str:
    return "".join(chunk["delta"].get(name) or "" for chunk in chunks)


def test_think_tags_are_split_off_whole_and_streamed(thinking: Served) -> None:
    message = thinking.chat()["message"]
    assert message["reasoning_content"] == "Hm.\n\nFrance → Paris 🗼."
    assert message["content"] == "Paris.</think>"
    chunks = thinking.stream()
    assert joined(chunks, "reasoning_content") == message["reasoning_content"]
    assert joined(chunks, "content") == message["content"]
    assert sum("reasoning_content" in chunk["delta"] for chunk in chunks) > 3
    assert chunks[-1]["finish_reason"] == "stop"


def test_the_prompt_says_whether_the_model_thinks(thinking: Served) -> None:
    message = thinking.chat(chat_template_kwargs={"enable_thinking": False})["message"]
    assert "reasoning_content" not in message
    assert message["content"] == THOUGHT


def test_harmonys_channels_are_split_by_their_tokens(channels: Served) -> None:
    message = channels.chat()["message"]
    assert message == {
        "role": "assistant",
        "content": "Paris.",
        "refusal": None,
        "reasoning_content": "Hm → 🗼.",
    }
    chunks = channels.stream()
    assert joined(chunks, "reasoning_content") == "Hm → 🗼."
    assert joined(chunks, "content") == "Paris."


@pytest.mark.parametrize("model", ["thinking", "channels"])
def test_tokens_are_counted_and_listed_all(model: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(model)
    listed = served.ids[:-1]
    assert len(served.chat(logprobs=True)["logprobs"]["content"]) == len(listed)
    chunks = served.stream(logprobs=True)
    streamed = [
        entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]
    ]
    assert streamed == served.chat(logprobs=True)["logprobs"]["content"]


def test_stop_strings_end_the_whole_text(thinking: Served, channels: Served) -> None:
    choice = thinking.chat(stop="Paris")
    assert choice["message"]["reasoning_content"] == "Hm.\n\nFrance →"
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert channels.chat(stop=".assistant")["message"]["reasoning_content"] == "Hm → 🗼"


def test_an_answer_cut_in_its_reasoning_has_no_content(channels: Served) -> None:
    choice = channels.chat(max_tokens=5)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["reasoning_content"]
    assert choice["message"]["content"] == ""


def test_each_choice_is_split_for_itself(thinking: Served) -> None:
    chunks = thinking.stream(n=2)
    for index in range(2):
        own = [chunk for chunk in chunks if chunk["index"] == index]
        assert joined(own, "content") == "Paris.</think>"


def test_completions_and_generate_give_the_raw_text(thinking: Served) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 60}
    answer = httpx.post(f"{thinking.url}/v1/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["text"].startswith(THOUGHT)
    answer = httpx.post(f"{thinking.url}/generate", json={"prompt": "x"}, timeout=60).json()
    assert answer["output"].startswith(THOUGHT)


def test_reasoning_that_comes_back_goes_to_templates_that_read_it(
    demo_folder: Path, tmp_path: Path
) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Paris.", "reasoning_content": "Hm."}]
    for template, shown in ((REPLAYING, True), (THINKING, False)):
        model = Served(model_text(demo_folder, tmp_path, template), THOUGHT)
        with served_engine(model.engine, model.text) as model.url:
            model.chat(messages=messages)
        prompt = model.text.decode(model.engine.requests[0].prompt_ids)
        assert ("Hm." in prompt) == shown
        assert "Paris." in prompt


# A form, the tokens before an answer that is of it, and what may not come before it.
HELD = {"structured_outputs": {"choice": ["yes", "no"]}}


def follows(model: Served, ids: list[int]) -> bool:
    """Whether what the engine was asked to hold the answer to takes all of `ids`, and may end."""
    grammar = model.engine.requests[-1].grammar
    assert grammar is not None
    tokenizer = LLTokenizer(model.text.tokenizer.to_str(), eos_token=model.text.chat_eos_ids[0])
    matcher = LLMatcher(tokenizer, grammar.text)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def ids_of(model: Served, text: str) -> list[int]:
    return model.text.tokenizer.encode(text, add_special_tokens=False).ids


def test_a_form_begins_behind_the_reasoning(thinking: Served) -> None:
    """The prompt has opened it."""
    thinking.chat(**HELD)
    assert follows(thinking, ids_of(thinking, 'Hm. "no"?\n</think>\n\nyes'))
    assert follows(thinking, ids_of(thinking, "\n</think>no"))
    assert not follows(thinking, ids_of(thinking, "yes"))
    assert not follows(thinking, ids_of(thinking, "Hm.</think>\n\nwell"))


def test_a_form_fits_what_travels_with_what_comes_before_it(thinking: Served) -> None:
    """A stage ends the epoch for a larger one."""
    schema = {"type": "object", "description": ""}
    thinking.chat(guided_json=schema)
    grammar = thinking.engine.requests[-1].grammar
    assert grammar is not None
    left = MAX_GRAMMAR_BYTES - len(grammar.text)
    thinking.chat(guided_json={**schema, "description": "x" * left})
    grammar = thinking.engine.requests[-1].grammar
    assert grammar is not None
    assert len(grammar.text) == MAX_GRAMMAR_BYTES
    larger = {
        "model": MODEL,
        "messages": MESSAGES,
        "guided_json": {**schema, "description": "x" * (left + 1)},
    }
    answer = httpx.post(f"{thinking.url}/v1/chat/completions", json=larger, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "guided_json"


def test_a_form_may_begin_at_once_where_the_prompt_opens_nothing(thinking: Served) -> None:
    thinking.chat(chat_template_kwargs={"enable_thinking": False}, **HELD)
    assert follows(thinking, ids_of(thinking, "yes"))
    assert follows(thinking, ids_of(thinking, "<think>\nHm.</think>\n\nyes"))
    assert not follows(thinking, ids_of(thinking, "Hm.</think>\n\nyes"))


def test_tags_that_are_special_tokens_stand_before_a_form(
    demo_folder: Path, tmp_path: Path
) -> None:
    text = model_text(demo_folder, tmp_path, THINKING, ("<think>", "</think>"))
    model = Served(text, THOUGHT)
    with served_engine(model.engine, model.text) as model.url:
        model.chat(**HELD)
        assert follows(model, ids_of(model, "Hm.</think>\n\nyes"))
        assert not follows(model, ids_of(model, "yes"))
        model.chat(chat_template_kwargs={"enable_thinking": False}, **HELD)
        assert follows(model, ids_of(model, "<think>Hm.</think>yes"))
        assert follows(model, ids_of(model, "no"))


def test_a_form_is_what_the_final_channel_has(channels: Served) -> None:
    channels.chat(**HELD)
    final = "<|channel|>final<|message|>"
    assert follows(channels, ids_of(channels, f"{final}yes"))
    assert follows(
        channels,
        ids_of(channels, f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{final}no"),
    )
    assert not follows(channels, ids_of(channels, "yes"))
    assert not follows(channels, ids_of(channels, f"{final}well"))


def test_a_completion_begins_with_its_form(thinking: Served) -> None:
    body = {"model": MODEL, "prompt": "x", **HELD}
    assert httpx.post(f"{thinking.url}/v1/completions", json=body, timeout=60).status_code == 200
    assert follows(thinking, ids_of(thinking, "yes"))
