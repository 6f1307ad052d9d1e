"""generation_config of the block protocol, as parameters of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract.generation import MEANS_SAMPLING
from proxy_block.component import GenerationConfig
from web.body import parse


def parse_generation_config(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are given; raises ApiError 400 that names the ones at fault."""
    return parse(GenerationConfig, document).model_dump(exclude_none=True)


def openai_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an OpenAI request for a checked config.

    do_sample false is greedy: temperature 0 alone. top_p 0 is a nucleus of one token, which
    OpenAI's API has no top_p for.
    """
    parameters = dict(config)
    if "max_new_tokens" in parameters:
        parameters["max_tokens"] = parameters.pop("max_new_tokens")
    if parameters.pop("do_sample", True) is False:
        for name in MEANS_SAMPLING:
            parameters.pop(name, None)
        parameters["temperature"] = 0
    elif parameters.get("top_p") == 0:
        del parameters["top_p"]
        parameters["top_k"] = 1
    return parameters
