"""The block protocol's messages: POST /infer and POST /management."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from proxy_block.generation_config import GenerationConfig
from service.fields import Fields

CHAT: Final = "chat"
COMPLETIONS: Final = "completions"
SessionId = Annotated[str, Field(min_length=1, max_length=256)]


class BlockData(Fields):
    """What is asked. `system_message` None takes the session's, then the block's."""

    message: Annotated[str, Field(min_length=1)]
    mode: Literal["chat", "completions"] = CHAT
    system_message: str | None = None
    generation_config: GenerationConfig = GenerationConfig()


class BlockRequest(Fields):
    """POST /infer; the answer is {"data": {...}}."""

    session_id: SessionId
    seq_no: Annotated[int, Field(ge=0, lt=2**63)]
    data: BlockData


class ResetArguments(Fields):
    """Without `session_id`, every session of the block is reset."""

    session_id: SessionId | None = None


class ManagementRequest(Fields):
    """POST /management; `reset` forgets chat histories."""

    action: Literal["reset"]
    data: ResetArguments = ResetArguments()
