from __future__ import annotations

import re
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from runner.errors import InvalidField, ModelUnavailable
from runner.master.text.chat_template import ChatTemplate

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CONVERSATION = [
    {"role": "system", "content": 'Be <brief> & "kind" → naïve.'},
    {"role": "user", "content": "  Hi!\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And {{ this }}?"},
]
TEMPLATES = {
    "whitespace and blocks": """
    {{- bos_token }}
    {%- for message in messages %}
        {% if message.role == 'system' %}
[S] {{ message['content'] | trim }}
        {% else %}
[{{ message.role }}] {{ message.content }}{{ eos_token }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}[assistant]{% endif %}
""",
    "loop controls": (
        "{% for message in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}"
        "{% if loop.index0 == 3 %}{% break %}{% endif %}{{ message.content }}|{% endfor %}"
    ),
    "tojson": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "namespace": (
        "{% set ns = namespace(count=0) %}{% for m in messages %}"
        "{% set ns.count = ns.count + 1 %}{% endfor %}{{ ns.count }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "undefined names": (
        "{{ missing_token }}{% if tools %}T{% endif %}{% if tools is none %}N{% endif %}"
    ),
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['x'], 2) | tojson }}",
    "date": "{{ strftime_now('%Y-%m') }}",
    "operators": (
        "{{ 'a' ~ 1 ~ none ~ missing }}{{ 'a' + 'b' }}{{ 7 % 4 }}{{ '%s-%d' % ('x', 3) }}"
        "{{ 1.5 + 2 }}{{ [1] + [bos_token] }}{{ messages[1:] | length }}{{ 'abc'[::-1] }}"
        "{% set x, y = 1, [2, messages[0].role] %}{{ x }}{{ y }}{{ (x, {'a': x}) }}"
    ),
    "filters and methods": (
        "{{ messages | map(attribute='role') | join(', ') }}{{ ','.join(['a', bos_token]) }}"
        "{{ 'x'.ljust(4) }}{{ 'a-b'.replace('-', '+') }}{{ '{} {a:>4}'.format(1, a=2) }}"
        "{{ 'abc' | replace('b', 'B') | upper | center(7) }}{{ 'a\n' | indent(2) }}"
        "{{ '%s %s' | format('y', 2.5) }}{{ messages | batch(3) | list | length }}"
        "{{ {'a': [bos_token]} | tojson(indent=2) }}{{ 2.25 | round(1) }}{{ [1, 2] | sum }}"
        "{{ ' x '.strip() }}{{ 'a b'.split() | last }}{{ messages | tojson | length }}"
    ),
    "blocks that are put together": (
        "{% macro m(a, b=1) %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}"
        "{{ m(bos_token) }}{% call m(2) %}c{{ bos_token }}{% endcall %}"
        "{% set text %}t{{ bos_token }}{% endset %}{{ text }}{% set u | upper %}u{{ text }}"
        "{% endset %}{{ u }}{% filter upper %}f{{ bos_token }}{% endfilter %}"
        "{% for a in [[1, [2]], [3]] recursive %}{% if a is iterable %}({{ loop(a) }})"
        "{% else %}{{ a }}{{ loop.depth }}{% endif %}{% endfor %}"
    ),
}


def rendered_by_transformers(template: str, messages: list[dict[str, Any]]) -> str:
    texts, _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=True, **SPECIAL_TOKENS
    )
    return texts[0]


def test_a_request_may_name_what_the_template_reads() -> None:
    template = ChatTemplate("{{ bos_token }}{{ 'T' if enable_thinking else 'N' }}", SPECIAL_TOKENS)
    assert template.render(CONVERSATION) == "<s>N"
    assert template.render(CONVERSATION, {"enable_thinking": True, "self": 1}) == "<s>T"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "range"]
)
def test_what_a_template_is_given_anyway_is_not_a_requests_to_set(name: str) -> None:
    with pytest.raises(InvalidField, match=f"chat_template_kwargs.{name}"):
        ChatTemplate("x", SPECIAL_TOKENS).render(CONVERSATION, {name: None})


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str) -> None:
    template = TEMPLATES[name]
    ours = ChatTemplate(template, SPECIAL_TOKENS).render(CONVERSATION)
    assert ours == rendered_by_transformers(template, CONVERSATION)
    assert ours


# Loops over content: a string's characters have no type, and its text is left out without a word.
READS_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content | "
    "selectattr('type', 'equalto', 'text') %}{{ part.text | trim }}{% endfor %}{% endfor %}"
)
READS_EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
READS_USERS_PARTS = (
    "{% if messages[0].role == 'system' %}<{{ messages[0].content.strip() }}>"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}"
)
ALL_ROLES = frozenset({"system", "user", "assistant"})


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (READS_PARTS, ALL_ROLES),
        (READS_EITHER, frozenset()),
        (READS_USERS_PARTS, {"user"}),
        (TEMPLATES["whitespace and blocks"], frozenset()),
        (TEMPLATES["date"], frozenset()),
    ],
)
def test_content_goes_in_the_form_that_the_template_reads(
    template: str, parts: frozenset[str]
) -> None:
    expected = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if message["role"] in parts
        else message
        for message in CONVERSATION
    ]
    ours = ChatTemplate(template, SPECIAL_TOKENS).render(CONVERSATION)
    assert ours == rendered_by_transformers(template, expected)
    if template != TEMPLATES["date"]:
        assert all(message["content"].strip() in ours for message in CONVERSATION)


def test_a_role_without_a_form_of_its_own_goes_in_the_users() -> None:
    ours = ChatTemplate(READS_PARTS, {}).render([{"role": "tool", "content": "42"}])
    assert ours == "<tool>42"


REFUSES_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</turn>"
    "{% endfor %}"
)
LEAVES_SYSTEM_OUT = (
    "{% for m in messages %}{% if m.role == 'user' %}[U]{% for part in m.content %}"
    "{{ part.text }}{% endfor %}{% elif m.role == 'assistant' %}[A]{{ m.content }}{% endif %}"
    "{% endfor %}"
)


def test_a_template_without_system_messages_gets_them_before_the_first_users(
    caplog: pytest.LogCaptureFixture,
) -> None:
    system, user, answer, last = CONVERSATION
    merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
    template = ChatTemplate(REFUSES_SYSTEM, SPECIAL_TOKENS)
    assert "reads no system messages" in caplog.text
    assert template.merges_system
    expected = rendered_by_transformers(REFUSES_SYSTEM, [merged, answer, last])
    assert template.render(CONVERSATION) == expected
    assert template.render([user]) == rendered_by_transformers(REFUSES_SYSTEM, [user])
    leaves_out = ChatTemplate(LEAVES_SYSTEM_OUT, {})
    assert leaves_out.render([system, system, *CONVERSATION[1:]]) == (
        f"[U]{system['content']}\n\n{system['content']}\n\n{user['content']}"
        f"[A]{answer['content']}[U]{last['content']}"
    )


@pytest.mark.parametrize(
    ("roles", "place"),
    [
        (["system"], 0),
        (["system", "assistant"], 0),
        (["user", "system", "user"], 1),
        (["system", "user", "system"], 2),
    ],
)
@pytest.mark.parametrize("template", [REFUSES_SYSTEM, LEAVES_SYSTEM_OUT])
def test_a_system_message_that_has_no_place_is_refused_by_name(
    template: str, roles: list[str], place: int
) -> None:
    messages = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(InvalidField, match=re.escape(f"messages[{place}].role")):
        ChatTemplate(template, {}).render(messages)


def test_a_template_that_takes_system_messages_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for template in (READS_PARTS, READS_USERS_PARTS, *TEMPLATES.values()):
        ChatTemplate(template, SPECIAL_TOKENS)
    assert not caplog.text


@pytest.mark.parametrize(
    ("template", "keeps"),
    [
        (READS_PARTS, False),
        ("{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}{% endfor %}", True),
        (
            "{% for m in messages %}{% if m.reasoning_content %}<t>{{ m.reasoning_content }}</t>"
            "{% endif %}{{ m.content[0].text }}{% endfor %}",
            True,
        ),
        (  # only of answers after the last question, as between calls of tools
            "{% for m in messages %}{% if loop.last %}{{ m.reasoning_content }}{% endif %}"
            "{{ m.content }}{% endfor %}",
            False,
        ),
        ("{{ raise_exception('no') }}", False),
    ],
)
def test_whether_a_template_reads_the_reasoning_of_earlier_answers(
    template: str, keeps: bool
) -> None:
    assert ChatTemplate(template, {}).keeps_reasoning == keeps


def test_a_template_that_refuses_says_so_in_its_own_words() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidField, match=r"template, own\.jinja, .*: roles must alternate"):
        ChatTemplate(template, {}, "own.jinja").render(CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__ }}{{ messages.append.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ dict.__call__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(template: str) -> None:
    with pytest.raises(InvalidField, match="messages"):
        ChatTemplate(template, {}).render(CONVERSATION)


def test_a_template_that_does_not_compile_is_the_models_fault() -> None:
    with pytest.raises(ModelUnavailable, match="does not compile"):
        ChatTemplate("{% for x in %}", {})


def test_keys_without_a_value_are_left_out() -> None:
    template = "{% for m in messages %}{{ 'name' in m }}{% endfor %}"
    assert ChatTemplate(template, {}).render([{"role": "user", "content": "x", "name": None}]) == (
        "False"
    )
