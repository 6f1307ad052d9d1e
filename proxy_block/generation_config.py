"""generation_config of the block protocol, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy_block.component import GenerationConfig
from web.body import parse


def parse_generation_config(document: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """The fields that are given; raises ApiError 400 that names the ones at fault.

    `under` is its path in a request.
    """
    return parse(GenerationConfig, document, under).model_dump(exclude_none=True)
