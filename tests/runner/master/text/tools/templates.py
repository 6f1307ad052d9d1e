"""Chat templates of our own in the shape of each family that writes calls in a form of its own."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """`special` are the family's markers that are special tokens of its tokenizers."""

    template: str
    special: tuple[str, ...] = ()


_TURNS = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

HERMES = Shape(
    "{% if tools %}<|im_start|>system\nFunctions:{% for t in tools %}\n{{ t | tojson }}{% endfor %}"
    '\nCall one so: <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n'
    "{% endif %}{% for m in messages %}{% if m.tool_calls %}<|im_start|>assistant\n{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response>"
    "<|im_end|>\n{% else %}" + _TURNS + "{% endif %}{% endfor %}" + _OPEN
)
THINKING_HERMES = Shape(
    HERMES.template.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
)
LLAMA = Shape(
    "{% macro head(role) %}<|start_header_id|>{{ role }}<|end_header_id|>\n\n{% endmacro %}"
    "{% if tools %}{{ head('system') }}Environment: ipython\n"
    '{"name": function, "parameters": {...}}'
    "{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}<|eot_id|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{{ head('assistant') }}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>"
    "{% elif m.role == 'tool' %}{{ head('ipython') }}{{ m.content | tojson }}<|eot_id|>"
    "{% else %}{{ head(m.role) }}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}",
    special=("<|python_tag|>",),
)
MISTRAL = Shape(
    "{{ bos_token }}"
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('an id has nine letters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{% endfor %}]{{ eos_token }}'
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }} {{ m.tool_call_id }}[/TOOL_RESULTS]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    special=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
)
GRANITE = Shape(
    "{% macro head(role) %}<|start_of_role|>{{ role }}<|end_of_role|>{% endmacro %}"
    "{% if tools %}{{ head('tools') }}{{ tools | tojson(indent=4) }}<|end_of_text|>\n"
    "{{ head('system') }}Use a tool with <|tool_call|> and a list.<|end_of_text|>\n{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{{ head('assistant') }}<|tool_call|>["
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]<|end_of_text|>\n"
    "{% else %}{{ head(m.role) }}{{ m.content }}<|end_of_text|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}",
    special=("<|tool_call|>",),
)
# Between the tags there is no JSON.
TAGGED = Shape(
    "{% for t in tools %}{{ t | tojson }}{% endfor %}Call so: <tool_call>\n<function=name>\n"
    "<parameter=one>value</parameter>\n</function>\n</tool_call>"
    "{% for m in messages %}{% for c in m.tool_calls or [] %}<tool_call><function="
    "{{ c.function.name }}>{% for k, v in c.function.arguments | items %}<parameter={{ k }}>{{ v }}"
    "</parameter>{% endfor %}</function></tool_call>{% endfor %}{{ m.content }}\n{% endfor %}"
)
HARMONY = Shape(
    "{% if tools %}<|start|>developer<|message|>namespace functions"
    "{% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}<|start|>assistant to="
    "{{ 'functions.' + c.function.name }}<|channel|>commentary json<|message|>"
    "{{ c.function.arguments | tojson }}<|call|>{% endfor %}{% elif m.role == 'tool' %}<|start|>"
    "functions.{{ m.name }} to=assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    special=(
        *("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>"),
        "<|constrain|>",
    ),
)
KNOWN = {
    "harmony": HARMONY,
    "hermes": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "granite": GRANITE,
}
