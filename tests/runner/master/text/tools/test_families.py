from __future__ import annotations

from typing import Any

import pytest

from runner.master.text.chat_template import ChatTemplate
from runner.master.text.tools.families import FAMILIES, CallForm, family_of
from tests.runner.master.text.test_reasoning import tokenizer_with
from tests.runner.master.text.tools.templates import KNOWN, TAGGED, THINKING_HERMES, Shape

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
QUESTION = {"role": "user", "content": "Rain?"}


def test_every_family_has_a_shape() -> None:
    assert {family.name for family in FAMILIES} == set(KNOWN)


@pytest.mark.parametrize(("name", "shape"), [*KNOWN.items(), ("hermes", THINKING_HERMES)])
def test_a_template_tells_its_family(name: str, shape: Shape) -> None:
    family = family_of(shape.template)
    assert family is not None
    assert family.name == name


@pytest.mark.parametrize(
    "template",
    [
        "",
        TAGGED.template,
        "{{ tools }}<|im_start|>{{ messages[0].content }}",
        "<tool_call>{{ name }}\n<arg_key>{{ key }}</arg_key> of arguments",
        "<|start_header_id|>{{ messages[0].content }}<|eot_id|>",
        # Llama 3's own tokens, and calls as others write them.
        "{{ tools }}<|start_header_id|>tool<|end_header_id|>",
    ],
)
def test_others_have_none(template: str) -> None:
    assert family_of(template) is None


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "harmony"])
@pytest.mark.parametrize("is_special", [True, False])
def test_markers_without_text_are_told_by_their_places(name: str, is_special: bool) -> None:
    shape = KNOWN[name]
    tokens = {"special": shape.special} if is_special else {"plain": shape.special}
    tokenizer = tokenizer_with(**tokens)
    form = CallForm.found(shape.template, tokenizer)
    assert form is not None
    expected = {tokenizer.token_to_id(text): text for text in shape.special} if is_special else {}
    assert form.special == expected
    assert form.marks == set(expected)


@pytest.mark.parametrize("name", KNOWN)
def test_tools_and_earlier_calls_reach_the_template(name: str) -> None:
    """The arguments, which clients send as text, as an object."""
    template = ChatTemplate(KNOWN[name].template, {"bos_token": "", "eos_token": "</s>"})
    assert template.takes_tools
    function = {"name": "weather", "arguments": '{"city":"Łódź"}'}
    call = {"id": "123456789", "type": "function", "function": function}
    messages: list[Any] = [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "wet", "tool_call_id": "123456789", "name": "weather"},
    ]
    text = template.render(messages, tools=[TOOL])
    assert '{"city": "Łódź"}' in text
    assert "wet" in text
    assert '"parameters"' in text
    assert '"parameters"' not in template.render([QUESTION]).replace('"parameters": {...}', "")


def test_a_template_may_want_the_arguments_as_text() -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + ':' + c.function.arguments }}{% endfor %}{{ m.content }}{% endfor %}"
    )
    function = {"name": "weather", "arguments": '{"city":"Łódź"}'}
    call = {"id": "1", "type": "function", "function": function}
    messages: list[Any] = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert ChatTemplate(source, {}).render(messages) == 'Rain?weather:{"city":"Łódź"}'
    assert not ChatTemplate(source, {}).takes_tools


@pytest.mark.parametrize("arguments", ["", "{", "[" * 100_000, "[1]"])
def test_arguments_that_are_no_object_are_still_rendered(arguments: str) -> None:
    template = ChatTemplate(KNOWN["hermes"].template, {})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    text = template.render([QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert (arguments or "{}")[:9] in text
