from __future__ import annotations

import threading
import tracemalloc

import pytest

from runner.errors import InvalidField, ModelUnavailable
from runner.master.text import template_steps
from runner.master.text.chat_template import ChatTemplate
from runner.master.text.template_steps import MAX_MADE, STEPS_PER_MESSAGE

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
        "{% for i in [1] recursive %}{% if loop.depth < 3 %}{% set x = loop(range(99999)) %}"
        "{% endif %}{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_refused_when_it_is_loaded(template: str) -> None:
    with pytest.raises(ModelUnavailable, match="does not come to an end"):
        ChatTemplate(template, {})


GROWN = "{% set ns = namespace(x='aaaaaaaa', y=['a']) %}{% for i in range(99) %}STEP{% endfor %}"
BIG = "{% set big = 'a' * 900000 %}"
MANY_TURNS = "{% for i in range(99999) %}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 7 * 10 ** 2000 }}",
        "{% for i in [1] * 10 ** 9 %}{% endfor %}",
        *(
            GROWN.replace("STEP", f"{{% set {step} %}}")
            for step in (
                "ns.x = ns.x ~ ns.x",
                "ns.x = ns.x + ns.x",
                "ns.x = '%s%s' % (ns.x, ns.x)",
                "ns.x = '{0}{0}'.format(ns.x)",
                "ns.x = [ns.x, ns.x] | join",
                "ns.x = ns.x.replace('a', 'aaaaaaaa')",
                "ns.y = ns.y + ns.y",
                "ns.y = [ns.y, ns.y]",
                "ns.y = {'a': ns.y, 'b': ns.y}",
                "ns.y = dict(a=ns.y, b=ns.y)",
                "ns.y = namespace(a=ns.y, b=ns.y)",
            )
        ),
        "{{ 'a' | center(10 ** 9) }}",
        "{{ ('a\n' * 1000) | indent(10 ** 6) }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ (1).to_bytes(10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%.1000000000f' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
        "{{ 1 | round(-1000000000) }}",
        "{{ [1] | slice(10 ** 9) | list }}",
        "{{ [[1]] | tojson(indent=10 ** 9) }}",
        BIG + "{{ big.replace('', big) }}",
        BIG + "{{ big.join(range(99999) | map('string')) }}",
        BIG + "{{ range(99999) | map('string') | join(big) }}",
        BIG + "{{ big.rfind('b' + big[:400000]) }}",
        BIG + "{{ range(99999) | batch(1) | sum(start=[]) }}",
        f"{BIG}{MANY_TURNS}{{{{ big }}}}{{% endfor %}}",
        f"{MANY_TURNS}{'data ' * 1000}{{% endfor %}}",
        f"{{% set x %}}{MANY_TURNS}{'data ' * 1000}{{% endfor %}}{{% endset %}}",
        f"{{% macro m() %}}{MANY_TURNS}{'data ' * 1000}{{% endfor %}}{{% endmacro %}}{{{{ m() }}}}",
    ],
)
def test_a_template_that_makes_too_much_is_refused_when_it_is_loaded(template: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelUnavailable, match="too much"):
            ChatTemplate(template, {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * MAX_MADE


def test_steps_that_are_long_ones_have_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_steps, "MAX_CPU_S", 0.05)
    template = f"{BIG}{MANY_TURNS}{{% if 'ab' in big %}}{{% endif %}}{{% endfor %}}"
    with pytest.raises(ModelUnavailable, match="does not come to an end"):
        ChatTemplate(template, {})


def test_what_is_made_of_a_long_conversation_may_be_long() -> None:
    """As reasoning models' templates handle their own turns."""
    template = ChatTemplate(
        "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.system = ns.system + m.content | trim %}{% endif %}{% endfor %}{{ ns.system }}"
        "{% for m in messages[::-1] %}{% set last = m.content[:20] %}{% endfor %}"
        "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{% set head = m.content.rsplit('</think>', 1)[0] %}"
        "{{ '<' ~ m.role ~ '>' + text | replace('\r', '') | trim + '\n' }}{% endfor %}",
        {},
    )
    words = "many words " * 200
    messages = [
        {"role": role, "content": f"{words}</think>{words}"} for role in ("user", "assistant") * 500
    ]
    told = template.render(messages)
    assert len(told) > 1000 * len(words)
    assert len(told) > MAX_MADE / 5


def test_what_a_message_sets_off_ends_that_request_alone() -> None:
    template = ChatTemplate(ON_DEMAND.replace("LOOP", NESTED), {})
    with pytest.raises(InvalidField, match="does not come to an end"):
        template.render([{"role": "user", "content": "go"}])
    assert template.render([USER]) == "hi"


def test_what_it_makes_of_a_message_ends_that_request_alone() -> None:
    template = ChatTemplate(ON_DEMAND.replace("LOOP", "{{ m.content * 10 ** 9 }}"), {})
    for _ in range(2):
        with pytest.raises(InvalidField, match=r"chat_template\.jinja, refuses them: .* too much"):
            template.render([{"role": "user", "content": "go"}])
        assert template.render([USER]) == "hi"


def test_a_range_is_no_longer_than_the_sandbox_lets_it_be() -> None:
    template = ChatTemplate("{% for i in range(10 ** 9) %}{% endfor %}", {})
    with pytest.raises(InvalidField, match=r"chat_template\.jinja, refuses them: Range too big"):
        template.render([USER])


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
    much = ChatTemplate(f"{{{{ 'a' * {MAX_MADE // 4} }}}}", {})
    assert len(much.render([USER])) == MAX_MADE // 4


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
