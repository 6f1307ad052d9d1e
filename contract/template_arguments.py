"""chat_template_kwargs: further names for a model's chat template, such as enable_thinking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# As JSON, in characters: switches and a few words, not another prompt.
MAX_CHARACTERS = 16_384
# What every template gets from the server; beside these, the special tokens of its model.
OWN_NAMES = ("messages", "tools", "documents", "add_generation_prompt")


def check_template_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ValueError with the rule that they break."""
    try:
        characters = len(json.dumps(arguments, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:  # not out of a request, of a stack file
        raise ValueError(f"must be JSON: {error}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if characters > MAX_CHARACTERS:
        message = f"must be at most {MAX_CHARACTERS} characters of JSON, not {characters}"
        raise ValueError(message)
