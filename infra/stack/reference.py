"""What the stack file's keys are, for editors and for people: its JSON Schema and a table.

`python -m infra.stack.reference` prints the table, which docs/stack-file.md holds; with --schema
it prints what is checked in as infra/stack.schema.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from infra.stack.config import DEPLOYMENT_KEY, DeploymentConfig

_HEADER = "| Key | Type | Default | Meaning |\n|---|---|---|---|\n"


def schema() -> dict[str, Any]:
    """The JSON Schema of a stack file; secrets and other programs' keys are not its business."""
    deployment = DeploymentConfig.model_json_schema()
    definitions = deployment.pop("$defs")
    definitions["DeploymentConfig"] = deployment
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Pulumi.<stack>.yaml of Splitstack",
        "type": "object",
        "required": ["config"],
        "properties": {
            "config": {
                "type": "object",
                "required": [DEPLOYMENT_KEY],
                "properties": {DEPLOYMENT_KEY: {"$ref": "#/$defs/DeploymentConfig"}},
            }
        },
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as the file infra/stack.schema.json holds it."""
    return json.dumps(schema(), indent=2, sort_keys=True) + "\n"


def reference_table() -> str:
    """A Markdown table: one row for each key under splitstack:deployment."""
    document = schema()
    rows = _rows(document["$defs"], document["$defs"]["DeploymentConfig"], "", {})
    return _HEADER + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _rows(
    definitions: dict[str, Any], section: dict[str, Any], prefix: str, shown: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    """`shown` has where the keys of a kind of section stand already: they are told once."""
    required = section.get("required", ())
    fields = sorted(section["properties"].items(), key=lambda pair: pair[0] not in required)
    for name, field in fields:
        path = prefix + name
        kind, suffix = _inner_section(field)
        inner = definitions.get(kind, {})
        described = field.get("description") or inner.get("description", "")
        meaning = " ".join(described.split())
        if kind in shown:
            meaning += f" Its keys: those of `{shown[kind]}`."
        default = "required" if name in required else _default(field)
        yield f"`{path}`", _type_label(field), default, meaning.replace("|", "\\|")
        if inner and kind not in shown:
            shown[kind] = path + suffix
            yield from _rows(definitions, inner, f"{path}{suffix}.", shown)


def _default(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "see below"
    # Lists and mappings are empty by a factory, which a schema does not show.
    empty: object = {} if field.get("type") == "object" else []
    return f"`{json.dumps(field.get('default', empty))}`"


def _inner_section(field: dict[str, Any]) -> tuple[str, str]:
    """The kind of section that a key holds, "" for none, and how its path goes on: [] in lists,
    .<name> in mappings."""
    values = field.get("additionalProperties")
    optional = next((item for item in field.get("anyOf", ()) if "$ref" in item), None)
    places = ((field, ""), (optional, ""), (field.get("items"), "[]"), (values, ".<name>"))
    for place, suffix in places:
        if isinstance(place, dict) and "$ref" in place:
            return str(place["$ref"]).rpartition("/")[2], suffix
    return "", ""


def _type_label(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "mapping"
    if "anyOf" in field:
        return " or ".join(_type_label(item) for item in field["anyOf"])
    if "enum" in field or "const" in field:
        values = field.get("enum", [field.get("const")])
        return "one of " + ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "format" in field:
        return str(field["format"])
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return str(kind[0])
    if kind == "array":
        return f"list of {_type_label(field['items'])}"
    return {"object": "mapping"}.get(kind, str(kind))


if __name__ == "__main__":
    print(schema_text() if "--schema" in sys.argv[1:] else reference_table(), end="")
