"""component.json: what a block takes and gives. It is what checks the requests.

The generation parameters come from contract/generation.py, which a stack file is checked by too.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Final

from contract.generation import block_protocol
from contract.specs import ProxySpec
from proxy_block.protocol import fields_model

COMPONENT: Final[dict[str, Any]] = json.loads(
    Path(__file__).with_name("component.json").read_text("utf-8")
)
INPUT: Final[dict[str, Any]] = COMPONENT["componentInputProtocol"]
INPUT["generation_config"]["properties"] = block_protocol()
RESET_ARGUMENTS: Final[dict[str, Any]] = COMPONENT["componentManagementCommandsTemplate"]["reset"][
    "args"
]
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
