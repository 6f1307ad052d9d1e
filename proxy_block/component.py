"""component.json: what a block takes and gives. It is what checks the requests.

A field of its protocols is {type, description, required?, default?, enum?, items?, properties?}
with the bounds `min`, `max`, `min_length`, `max_length`, `min_items` and `max_items`, as AIOS's own
files write them. The generation parameters come from contract/generation.py, which a stack file is
checked by too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, create_model

from contract.generation import block_protocol
from contract.specs import ProxySpec
from web.body import Fields, whole_number

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
    return Annotated[kind, BeforeValidator(whole_number)] if rules["type"] == "integer" else kind


COMPONENT: Final[dict[str, Any]] = json.loads(
    Path(__file__).with_name("component.json").read_text("utf-8")
)
INPUT: Final[dict[str, Any]] = COMPONENT["componentInputProtocol"]
INPUT["generation_config"]["properties"] = block_protocol()
RESET_ARGUMENTS: Final[dict[str, Any]] = COMPONENT["componentManagementCommandsTemplate"]["reset"][
    "args"
]
# What a block puts out: a text by its mode, and beside it what no other block reads.
OUTPUT_TEXTS = ("reply", "generated")
BESIDE_OUTPUT = tuple(
    name for name in COMPONENT["componentOutputProtocol"] if name not in OUTPUT_TEXTS
)
# Other ways to give what these four say.
_QUESTION_FIELDS = ("message", "mode", "system_message", "generation_config")
Question = fields_model("Question", {name: INPUT[name] for name in _QUESTION_FIELDS})
GenerationConfig = fields_model("GenerationConfig", INPUT["generation_config"]["properties"])
ResetArguments = fields_model("ResetArguments", RESET_ARGUMENTS)


def component_document(spec: ProxySpec) -> dict[str, Any]:
    """component.json of one block: the checked-in file with what its stack file says."""
    kind, _, rest = spec.component.partition(".")
    name, _, version = rest.partition(":")
    number, _, tag = version.partition("-")
    document = copy.deepcopy(COMPONENT)
    document["componentId"] = {"name": name, "version": number, "releaseTag": tag}
    document["componentType"] = kind
    document["componentInitData"]["model_split_id"] = spec.deployment_name
    document["componentMetadata"]["labels"] = dict(spec.labels)
    document["componentParameters"]["generation_config"] = dict(spec.generation_config)
    document["componentInitSettings"]["system_message"] = spec.system_message
    return document | {"blockId": spec.block_id}
