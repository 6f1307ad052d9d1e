"""The JSON Schema of a stack file.

`python -m infra.stack.schema` prints what is checked in as infra/stack.schema.json.
"""

from __future__ import annotations

import json
from typing import Any

from infra.stack.config import DEPLOYMENT_KEY, DeploymentConfig


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


if __name__ == "__main__":
    print(schema_text(), end="")
