"""A request's tools, checked: what is offered to the model, and whether it must call."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from runner.errors import InvalidField
from runner.master.api.fields import check_fields
from runner.master.api.unserved import FUNCTION, TOOL

NONE: Final = "none"
AUTO: Final = "auto"
REQUIRED: Final = "required"
# OpenAI's.
MAX_TOOLS = 128
TOOL_FIELDS = ("type", "function")
FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NAME_RULE = "must be 1 to 64 letters, digits, underscores and hyphens"
_CHOICE_RULE = (
    f'must be "{NONE}", "{AUTO}", "{REQUIRED}" or '
    '{"type": "function", "function": {"name": ...}}'
)
_NO_PARAMETERS = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class AskedTools:
    """`tools` as a chat template gets them, each {"type": "function", "function": {...}}.

    `choice` is none, auto or required; `name` is the one that has to be called, where one is
    named, which is required too. `characters` are those of `tools` as JSON.
    """

    tools: Sequence[Mapping[str, Any]]
    choice: str
    name: str | None
    is_parallel: bool
    characters: int

    @property
    def may_call(self) -> bool:
        return self.choice != NONE

    @property
    def must_call(self) -> bool:
        return self.choice == REQUIRED

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool["function"]["name"] for tool in self.tools)


def asked_tools(tools: object, choice: object, parallel: object) -> AskedTools | None:
    """What the fields `tools`, `tool_choice` and `parallel_tool_calls` ask for; None without tools.

    Raises InvalidField naming the one that is wrong.
    """
    if not isinstance(parallel, bool | None):
        raise InvalidField("parallel_tool_calls", parallel, "must be true or false")
    checked = _tools(tools)
    chosen, name = _choice(choice, bool(checked))
    names = [tool["function"]["name"] for tool in checked]
    if name is not None and name not in names:
        rule = f"must be the name of one of tools: {', '.join(names)}"
        raise InvalidField("tool_choice.function.name", name, rule)
    if not checked:
        return None
    try:
        characters = len(json.dumps(checked, ensure_ascii=False))
    except RecursionError as error:
        raise InvalidField("tools", f"{len(names)} tools", "is nested too deeply") from error
    return AskedTools(checked, chosen, name, parallel is not False, characters)


def _tools(tools: object) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise InvalidField("tools", tools, "must be a list")
    if len(tools) > MAX_TOOLS:
        rule = f"must have at most {MAX_TOOLS} tools"
        raise InvalidField("tools", f"{len(tools)} tools", rule)
    checked = [_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools)]
    places: dict[str, int] = {}
    for place, tool in enumerate(checked):
        name = tool["function"]["name"]
        if (first := places.setdefault(name, place)) != place:
            rule = f"must be another name than that of tools[{first}]"
            raise InvalidField(f"tools[{place}].function.name", name, rule)
    return checked


def _tool(field: str, tool: object) -> dict[str, Any]:
    """As a template gets it: without nulls, and with parameters."""
    given = _object(field, tool, 'must be {"type": "function", "function": {...}}')
    if given.get("type") != "function":
        rule = 'must be "function": this server calls nothing by itself'
        raise InvalidField(f"{field}.type", given.get("type"), rule)
    check_fields(field, given, TOOL_FIELDS, TOOL, "is not a field of a tool")
    path = f"{field}.function"
    function = _object(path, given.get("function"), 'must be {"name": ...}')
    check_fields(path, function, FUNCTION_FIELDS, FUNCTION, "is not a field of a function")
    check_name(f"{path}.name", function.get("name"))
    if not isinstance(function.get("description"), str | None):
        raise InvalidField(f"{path}.description", function["description"], "must be a string")
    if not isinstance(function.get("parameters"), Mapping | None):
        rule = "must be an object, a JSON Schema"
        raise InvalidField(f"{path}.parameters", function["parameters"], rule)
    if not isinstance(function.get("strict"), bool | None):
        raise InvalidField(f"{path}.strict", function["strict"], "must be true or false")
    kept = {name: function[name] for name in FUNCTION_FIELDS if function.get(name) is not None}
    return {"type": "function", "function": {"parameters": _NO_PARAMETERS, **kept}}


def check_name(field: str, name: object) -> None:
    """Raises InvalidField where no function is called so."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidField(field, name, _NAME_RULE)


def _choice(choice: object, has_tools: bool) -> tuple[str, str | None]:
    """none, auto or required, and the name of the one that has to be called."""
    if choice is None:
        return AUTO, None
    name: str | None = None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        named = choice.keys() == {"type", "function"} and choice["type"] == "function"
        if not named or not isinstance(function, Mapping) or function.keys() != {"name"}:
            raise InvalidField("tool_choice", choice, _CHOICE_RULE)
        name = function["name"]
        check_name("tool_choice.function.name", name)
    elif choice not in (NONE, AUTO, REQUIRED):
        raise InvalidField("tool_choice", choice, _CHOICE_RULE)
    if choice in (NONE, AUTO):
        return str(choice), None
    if not has_tools:
        raise InvalidField("tool_choice", choice, "is allowed only with tools")
    return REQUIRED, name


def _object(field: str, value: object, rule: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidField(field, value, rule)
    return value
