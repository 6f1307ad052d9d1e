"""A protocol of component.json as the pydantic model that checks requests.

A field is {type, description, required?, default?, enum?, items?, properties?} with the bounds
`min`, `max`, `min_length`, `max_length`, `min_items` and `max_items`, as AIOS's own files write
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from web.body import Fields

_KINDS: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool}
_BOUNDS = {"min": "ge", "max": "le", "min_length": "min_length", "max_length": "max_length"}
_BOUNDS |= {"min_items": "min_length", "max_items": "max_length"}


def fields_model(name: str, protocol: Mapping[str, Mapping[str, Any]]) -> type[Fields]:
    """A model that refuses fields which `protocol` does not have; null means left out."""
    fields: dict[str, Any] = {field: _definition(field, rules) for field, rules in protocol.items()}
    return create_model(name, __base__=Fields, **fields)


def _definition(name: str, rules: Mapping[str, Any]) -> tuple[Any, Any]:
    """The field's type and its default."""
    kind = _kind(name, rules)
    if rules.get("required"):
        return kind, ...
    default = rules.get("default")
    given = BeforeValidator(lambda value: default if value is None else value)
    return Annotated[kind | None, given], default


def _kind(name: str, rules: Mapping[str, Any]) -> Any:
    kind: Any
    if "enum" in rules:
        kind = Literal[tuple(rules["enum"])]
    elif rules["type"] == "array":
        kind = list[_kind(name, rules["items"])]  # type: ignore[misc]
    elif rules["type"] == "object":
        kind = fields_model(name, rules["properties"])
    else:
        kind = _KINDS[rules["type"]]
    bounds: dict[str, Any] = {
        word: rules[bound] for bound, word in _BOUNDS.items() if bound in rules
    }
    if rules["type"] == "array":
        bounds["fail_fast"] = True
    if rules["type"] == "number":
        bounds["allow_inf_nan"] = False
    kind = Annotated[kind, Field(description=rules.get("description"), **bounds)]
    return Annotated[kind, BeforeValidator(_whole)] if rules["type"] == "integer" else kind


def _whole(value: Any) -> Any:
    """10.0 is an integer in JSON, which has one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
