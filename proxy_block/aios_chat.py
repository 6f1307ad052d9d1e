"""AIOS's POST /v1/chat/ as a body of OpenAI's chat endpoint."""

from __future__ import annotations

from typing import Any

from contract.generation import openai_parameters
from contract.near_names import OTHER_NAMES
from proxy_block.generation_config import parse_generation_config
from web.errors import invalid_field

CONFIG, STREAMING = "generation_config", "enable_streaming"


def openai_chat(document: dict[str, Any]) -> dict[str, Any]:
    """The request's own fields go before those of its generation_config; raises ApiError 400."""
    given = {name: value for name, value in document.items() if value is not None}
    for name in given:
        if CONFIG in OTHER_NAMES.get(name, ()):
            rule = f"is not a field of this request; did you mean {CONFIG}?"
            raise invalid_field(name, rule, given[name])
    config = openai_parameters(parse_generation_config(given.pop(CONFIG, {}), CONFIG))
    if "max_completion_tokens" in given:
        config.pop("max_tokens", None)
    if STREAMING in given:
        streaming = given.pop(STREAMING)
        if not isinstance(streaming, bool):
            raise invalid_field(STREAMING, "must be true or false", streaming)
        if given.setdefault("stream", streaming) != streaming:
            rule = f"must be what {STREAMING} says, where both are given"
            raise invalid_field("stream", rule, given["stream"])
    return {**config, **given}
