"""The `code` of a master's refusals that the tiers in front act on."""

from __future__ import annotations

from typing import Final

# The prompt, or what it asks for, is longer than the model's context.
PROMPT_TOO_LONG: Final = "context_length_exceeded"
# A conversation for a base model.
NO_CHAT_TEMPLATE: Final = "no_chat_template"
