from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.stack.generation_config import GenerationConfig

COMPONENT = Path(__file__).parents[3] / "proxy_block" / "component.json"
_WORDS = {
    "minimum": "min",
    "maximum": "max",
    "maxItems": "max_items",
    "minLength": "min_length",
    "maxLength": "max_length",
}


def rules(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema's type and bounds in component.json's words."""
    schema = next((item for item in schema.get("anyOf", ()) if item.get("type") != "null"), schema)
    found = {ours: schema[theirs] for theirs, ours in _WORDS.items() if theirs in schema}
    if "items" in schema:
        found["items"] = rules(schema["items"])
    return found | {"type": schema["type"]}


def test_the_rules_are_the_block_protocols() -> None:
    protocol = json.loads(COMPONENT.read_text())["componentInputProtocol"]
    theirs = protocol["generation_config"]["properties"]
    for rule in theirs.values():
        rule.pop("description")
    properties = GenerationConfig.model_json_schema()["properties"]
    assert {name: rules(schema) for name, schema in properties.items()} == theirs
