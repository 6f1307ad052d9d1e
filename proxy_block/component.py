"""component.json: what this block takes and gives, generated from what checks the requests."""

from __future__ import annotations

from typing import Any

from proxy_block.block_request import BlockData
from proxy_block.generation_config import GenerationConfig
from service.contract import ProxySpec


def component_document(spec: ProxySpec, defaults: GenerationConfig) -> dict[str, Any]:
    """AIOS's component.json for `spec`; the input protocol is a JSON Schema."""
    kind, _, rest = spec.component.partition(".")
    name, _, version = rest.partition(":")
    number, _, tag = version.partition("-")
    usage = {"type": "object", "description": "Tokens of prompt and answer, as OpenAI counts them."}
    return {
        "componentId": {"name": name, "version": number, "releaseTag": tag},
        "componentType": kind,
        "blockId": spec.block_id,
        "componentInitData": {"model_split_id": spec.deployment_name},
        "componentMetadata": {"model_name": spec.model_name, "labels": spec.labels},
        "componentInputProtocol": BlockData.model_json_schema(),
        "componentOutputProtocol": {
            "reply": {"type": "string", "description": "The answer in chat mode."},
            "generated": {"type": "string", "description": "The answer in completions mode."},
            "usage": usage,
        },
        "componentManagementCommandsTemplate": {
            "reset": {
                "description": "Forget the history of one session, or of all.",
                "args": {"session_id": {"type": "string", "required": False}},
            }
        },
        "componentParameters": {"generation_config": defaults.given()},
        "componentInitSettings": {"system_message": spec.system_message},
    }
