"""generation_config of the block protocol, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contract.generation import MEANS_SAMPLING, openai_parameters
from proxy_block.component import GenerationConfig
from web.body import parse


def parse_generation_config(document: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """The fields that are given; raises ApiError 400 that names the ones at fault.

    `under` is its path in a request.
    """
    return parse(GenerationConfig, document, under).model_dump(exclude_none=True)


def with_generation_config(
    document: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """An OpenAI request with a block's checked generation_config where it says nothing, or null.

    A greedy config is none for a request that names how to sample.
    """
    given = {name for name, value in document.items() if value is not None}
    ours = openai_parameters(config)
    if "max_completion_tokens" in given:
        ours.pop("max_tokens", None)
    if ours.get("temperature") == 0 and given.intersection(MEANS_SAMPLING):
        del ours["temperature"]
    return {**document, **{name: value for name, value in ours.items() if name not in given}}
