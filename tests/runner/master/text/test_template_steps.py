from __future__ import annotations

import threading

import pytest

from runner.errors import InvalidField, ModelUnavailable
from runner.master.text.chat_template import ChatTemplate
from runner.master.text.template_steps import MAX_PRODUCT, STEPS_PER_MESSAGE

USER = {"role": "user", "content": "hi"}
NESTED = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
BRANCHING = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
# Only a message sets it off, so that it is no matter of loading.
ON_DEMAND = (
    "{% for m in messages %}{{ m.content }}{% if m.content == 'go' %}LOOP{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        NESTED,
        f"{{{{ messages[0].content }}}}{NESTED}",
        BRANCHING + "{{ f(40) }}",
        "{% for i in [1, 2] recursive %}{% if loop.depth < 40 %}{{ loop([1, 2]) }}{% endif %}"
        "{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_refused_when_it_is_loaded(template: str) -> None:
    with pytest.raises(ModelUnavailable, match="does not come to an end"):
        ChatTemplate(template, {})


@pytest.mark.parametrize(
    "template",
    ["{{ 'a' * 10 ** 9 }}", "{{ 9 ** (9 ** 9) }}", "{% for i in [1] * 10 ** 9 %}{% endfor %}"],
)
def test_a_template_that_makes_too_much_is_refused_when_it_is_loaded(template: str) -> None:
    with pytest.raises(ModelUnavailable, match="too much"):
        ChatTemplate(template, {})


def test_what_a_message_sets_off_ends_that_request_alone() -> None:
    template = ChatTemplate(ON_DEMAND.replace("LOOP", NESTED), {})
    with pytest.raises(InvalidField, match="does not come to an end"):
        template.render([{"role": "user", "content": "go"}])
    assert template.render([USER]) == "hi"


def test_renders_in_threads_are_counted_each_for_itself() -> None:
    template = ChatTemplate(ON_DEMAND.replace("LOOP", NESTED), {})
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(template.render([USER] * 200)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["hi" * 200] * 4


def test_long_conversations_may_take_long() -> None:
    inner = f"{{% for i in range({STEPS_PER_MESSAGE // 2}) %}}{{% endfor %}}"
    template = ChatTemplate(
        f"{{% for m in messages %}}{inner}{{{{ m.content }}}}{{% endfor %}}", {}
    )
    assert template.render([USER] * 1000) == "hi" * 1000


def test_products_in_use_pass() -> None:
    text = "{{ '-' * 20 }}{{ 3 * 4 }}{{ 1.5 * 2 }}{{ 2 ** 10 }}{{ ([1] * 3) | length }}"
    assert ChatTemplate(text, {}).render([USER]) == "-" * 20 + "123.010243"
    at_most = ChatTemplate(f"{{{{ 'a' * {MAX_PRODUCT} }}}}", {})
    assert len(at_most.render([USER])) == MAX_PRODUCT


def test_a_counted_loop_knows_its_length() -> None:
    template = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ loop.nextitem }}{% else %}none{% endfor %}{% for m in [] %}{% else %}none{% endfor %}"
    )
    assert ChatTemplate(template, {}).render([USER]) == "1/1Truenone"


@pytest.mark.parametrize(
    "template", ["{% if true %}" * 3000 + "{% endif %}" * 3000, "{{ " + "(" * 5000, "{% endfor %}"]
)
def test_a_template_that_does_not_compile_is_refused(template: str) -> None:
    with pytest.raises(ModelUnavailable, match="does not compile"):
        ChatTemplate(template, {})
