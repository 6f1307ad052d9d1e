"""A model's chat template, rendered as transformers renders it, without importing transformers.

The environment (sandbox, extensions, filters, globals) is that of
transformers.utils.chat_template_utils, with bounds on what a template may do; a test holds the two
equal.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from contract.faults import path_of
from contract.template_arguments import OWN_NAMES
from runner.errors import InvalidField, ModelUnavailable
from runner.master.text.message_forms import MessageForms, Messages, Tools
from runner.master.text.template_growth import size_of
from runner.master.text.template_steps import CountingEnvironment, bounded, counted_steps, made

# What every template is given.
_log = logging.getLogger(__name__)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here it only passes through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateNamespace(Namespace):
    """Refuses names that begin with an underscore: templates come from the hub, untrusted."""

    def __init__(*arguments: Any, **attributes: Any) -> None:
        self, rest = arguments[0], arguments[1:]
        for name in dict(*rest, **attributes):
            _check_name(name)
        Namespace.__init__(self, *rest, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        # A text was counted when it was made; one namespace may hold another many times.
        super().__setitem__(name, value if isinstance(value, str) else made(value))


class _TemplateDict:
    """`dict(...)` without the class itself and its attributes."""

    def __call__(self, *arguments: Any, **items: Any) -> dict[Any, Any]:
        return dict(*arguments, **items)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold the name {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters; prompts must not be escaped."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> CountingEnvironment:
    environment = CountingEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _TemplateDict(),
        "namespace": _TemplateNamespace,
    }
    environment.globals.update(functions)
    environment.filters["tojson"] = bounded("tojson", _tojson)
    return environment


class ChatTemplate:
    """One compiled template. `special_tokens`: names such as bos_token, as the template sees them.
    `file` is the name of the one that it stands in.

    Raises ModelUnavailable when the template's source does not compile, has no end, or makes too
    much.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], file: str = "chat_template.jinja"
    ) -> None:
        self.source, self._file = source, file
        try:
            with counted_steps():
                self._template = _environment().from_string(source)
        except Exception as error:  # a deep one overflows Jinja's parser, or Python's
            raise ModelUnavailable(
                f"the model's chat template does not compile: {error}"
            ) from error
        self._special_tokens = dict(special_tokens)
        self._forms = MessageForms.found(self._rendered)
        if self.merges_system:
            _log.warning(
                "the model's chat template reads no system messages: "
                "they are put before the first user message, as a part of it"
            )

    @property
    def merges_system(self) -> bool:
        """System messages that lead become part of the user's message after them."""
        return not self._forms.takes_system

    @property
    def keeps_reasoning(self) -> bool:
        """The reasoning_content of answers to earlier messages stands in the prompt."""
        return self._forms.keeps_reasoning

    @property
    def takes_tools(self) -> bool:
        """What a request's tools are stands in the prompt."""
        return self._forms.takes_tools

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any] | None = None,
        tools: Tools = (),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text; raises InvalidField with the template's own words when it refuses.

        `arguments` are further names for the template, such as enable_thinking; one that stands
        for something else already is refused.

        Content is text, and so are the arguments of calls; they go in the form that the template
        reads. Keys whose value is None are
        left out, as transformers does: templates take a missing key, not None.
        """
        plain = [
            {key: value for key, value in message.items() if value is not None}
            for message in messages
        ]
        further = self._checked(arguments or {})
        read = self._forms.apply(plain)
        try:
            return self._rendered(read, tools or None, add_generation_prompt, further)
        except Exception as error:  # a template is foreign code and may raise anything
            rule = f"the model's chat template, {self._file}, refuses them: {error}"
            raise InvalidField("messages", f"{len(plain)} messages", rule) from error

    def _checked(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        own = {*OWN_NAMES, *self._special_tokens, *self._template.globals}
        for name in arguments:
            if name in own:
                rule = "is not the request's to set: it means something else in a chat template"
                path = path_of(("chat_template_kwargs", name))
                raise InvalidField(path, arguments[name], rule)
        return arguments

    def _rendered(
        self,
        messages: Messages,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        further: Mapping[str, Any] | None = None,
    ) -> str:
        names = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        given = (messages, tools or ())
        with counted_steps(sum(map(len, given)), size_of(given, sys.maxsize)):
            return self._template.render({**(further or {}), **names, **self._special_tokens})
