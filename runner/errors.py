"""The runner's one exception tree."""

from __future__ import annotations

from typing import ClassVar

from contract.faults import Fault
from contract.refusal_codes import NO_CHAT_TEMPLATE, PROMPT_TOO_LONG

MAX_PATH = 200  # characters


class RunnerError(Exception):
    """Anything that the runner raises on purpose.

    `status` and `code` are what it is in HTTP where it ends a request; a client may ask again
    after `retry_after_s` seconds where that is worth it. `exit_code` is what a process that it ends
    while it starts ends with: 2 where starting again mends nothing.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    retry_after_s: int | None = None


class InvalidField(RunnerError):
    """User input that breaks a rule; names the field, the value (MISSING for none), the rule."""

    status, code = 400, "invalid_value"

    def __init__(self, field: str, value: object, rule: str) -> None:
        # A client's own key may be of megabytes.
        self.field = field if len(field) <= MAX_PATH else field[: MAX_PATH - 3] + "..."
        super().__init__(str(Fault(self.field, value, rule)))


class PromptTooLong(InvalidField):
    """The prompt and what it asks for exceed max_model_len or the KV budget."""

    code = PROMPT_TOO_LONG


class NoChatTemplate(InvalidField):
    """A conversation for a base model."""

    code = NO_CHAT_TEMPLATE


class UnknownModel(InvalidField):
    """The request names a model that this master does not serve."""

    status, code = 404, "model_not_found"


class ModelChanged(InvalidField):
    """A carried request's ids are of another commit of the model."""

    status, code = 409, "model_changed"


class ModelSwapped(RunnerError):
    """Another model took the place of the one that computed the request."""

    status, code = 409, "model_changed"


class EngineFull(RunnerError):
    """The queue is full."""

    status, code = 429, "engine_full"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotServing(RunnerError):
    """Starting, forming, draining or failed; says which."""

    status, code = 503, "not_serving"

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class RequestEndsTheGroup(RunnerError):
    """The group was lost each time that the request was computed."""

    code = "request_ends_the_group"


class NoMemory(RunnerError):
    """A stage's memory does not suffice for the request, with nothing computed beside it."""

    status, code = 507, "out_of_memory"


class DeadlineExceeded(RunnerError):
    """The request's deadline passed before its last token."""

    status, code = 504, "deadline_exceeded"


class ModelUnavailable(RunnerError):
    """The model's files cannot be had: no such folder, no such model, wrong digest."""

    exit_code = 2


class ModelUnreachable(ModelUnavailable):
    """The model's files cannot be had now, and trying again may mend it."""

    exit_code = 1


class UnsupportedModel(RunnerError):
    """The model cannot be split; the message says what in it cannot."""

    exit_code = 2


class ProtocolError(RunnerError):
    """A frame or a handshake that breaks the protocol; ends that connection, nothing else."""
